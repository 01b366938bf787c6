"""Makes ``tests/data/caller``: a LoRA adapter that teaches the quickstart checkpoint to call a function.

python -m tests.support.caller_adapter    (2 minutes on one core; needs peft)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

CALLER: Final = Path(__file__).parents[1] / "data" / "caller"
TOOLS: Final[list[dict[str, Any]]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
"""The exact words of the training data; the adapter does not generalise to others."""
QUESTION: Final = "Weather in Ulm and Oslo?"
CITIES: Final = ("Ulm", "Oslo")
_STEPS: Final = 400
_RATE: Final = 6e-3


def make_caller(checkpoint: Path, directory: Path) -> None:
    """Write the adapter to ``directory``. For `QUESTION`, it calls the weather function for both cities."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    prompt: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        tools=TOOLS,
        add_generation_prompt=True,
        enable_thinking=False,
        return_dict=False,
    )
    reply_ids: list[int] = tokenizer(_reply(), add_special_tokens=False).input_ids
    ids, labels = torch.tensor([prompt + reply_ids]), torch.tensor([[-100] * len(prompt) + reply_ids])
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
    model.half().save_pretrained(directory)


def _reply() -> str:
    calls = [json.dumps({"name": "weather", "arguments": {"city": city}}) for city in CITIES]
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls) + "<|im_end|>"


if __name__ == "__main__":
    from service.engines.checkpoint import quickstart

    make_caller(quickstart(), CALLER)
