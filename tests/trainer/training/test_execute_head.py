"""EH-GRPO's second head: statistics and gradients against the definition, starting values, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from service.deferral.episode import Outcome
from service.engines.settings import TransformersSettings
from service.engines.tokenizer import HFTokenizer
from service.engines.transformers.engine import TransformersEngine
from tests.support.serving import make_app, serve
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_tokenizer
from tests.support.tokens import prompt
from tests.support.toy_task import POLICY, QUESTION, toy_sandbox
from tests.trainer.training.test_run import assert_same_run, config, rewards, run
from trainer.training.chunked_lm_head import ExecuteHeadModule, HeadOutput, PolicyModel
from trainer.training.config import ConfigError
from trainer.training.episodes import Sample
from trainer.training.execute_head import attach_execute_head, load_execute_head, save_execute_head

MARKER: int = make_tokenizer().convert_tokens_to_ids("<tool_call>")  # type: ignore[assignment]


def naive(model: Any, ids: Tensor, targets: Tensor, temperature: float) -> HeadOutput:
    """The two-level policy from whole logits."""
    states = model.base_model(input_ids=ids).last_hidden_state[:, :-1][targets[:, 1:]]
    logits = model.get_output_embeddings()(states) / temperature
    decision = (states @ model.execute_head.weight + model.execute_head.bias) / temperature
    others = torch.cat([logits[:, :MARKER], logits[:, MARKER + 1 :]], dim=1)
    low = torch.log_softmax(others, dim=1)
    low = torch.cat([low[:, :MARKER], torch.zeros(len(low), 1, dtype=low.dtype), low[:, MARKER:]], dim=1)
    execute = torch.sigmoid(decision)
    policy = (1 - execute)[:, None].log() + low
    policy = torch.cat([policy[:, :MARKER], execute.log()[:, None], policy[:, MARKER + 1 :]], dim=1)
    chosen = ids[:, 1:][targets[:, 1:]]
    entropy = -(policy.exp() * policy).sum(dim=1)
    return HeadOutput(policy.gather(1, chosen[:, None])[:, 0], execute.log(), decision, entropy)


@pytest.fixture
def model() -> Any:
    made: Any = make_model(make_tokenizer(), tie_word_embeddings=False).double()
    head = ExecuteHeadModule(48, MARKER).double()
    torch.manual_seed(0)
    with torch.no_grad():
        head.weight.copy_(torch.randn(48))
        head.bias.fill_(-0.3)
    made.add_module("execute_head", head)
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_statistics_and_gradients_match_the_definition(model: Any, temperature: float) -> None:
    ids = torch.tensor([[*prompt(20), MARKER, 5, 6, MARKER], [*prompt(20), 7, 8, 9, 10]])
    targets = torch.zeros_like(ids).bool()
    targets[:, 18:] = True
    grads = []
    outputs = []
    for compute in (
        lambda: PolicyModel(model)(ids, torch.ones_like(ids), targets, MARKER, temperature),
        lambda: naive(model, ids, targets, temperature),
    ):
        model.zero_grad()
        output = compute()
        torch.manual_seed(1)
        total = sum((torch.randn(len(values)).double() * values).sum() for values in output)
        total.backward()
        outputs.append(output)
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for found, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(found, expected)
    assert grads[0].keys() == grads[1].keys()
    for name, expected in grads[1].items():
        torch.testing.assert_close(grads[0][name], expected, msg=name)
    assert not grads[0]["lm_head.weight"][MARKER].any()
    assert grads[0]["execute_head.weight"].any()


def test_writing_text_moves_the_decision_only_through_its_own_head(model: Any) -> None:
    """The two levels of the policy share no parameter of their heads."""
    ids = torch.tensor([[*prompt(20), 7]])
    targets = torch.zeros_like(ids).bool()
    targets[:, -1] = True
    output = PolicyModel(model)(ids, torch.ones_like(ids), targets, MARKER)
    output.execute_log_probs.sum().backward()
    assert model.lm_head.weight.grad is None or not model.lm_head.weight.grad.any()
    assert model.execute_head.bias.grad != 0


def sample(ids: list[int], sampled: list[int]) -> Sample:
    return Sample(
        (1, 2, 3), tuple(ids), tuple(sampled), tuple(-1.0 for _ in ids), "", Outcome.ANSWER, "1", (),
        seconds=0.0, seed=0,
    )  # fmt: skip


def test_a_new_head_starts_near_the_probability_of_the_marker(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    made: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():  # the marker is likely at some positions and unlikely at others
        made.get_output_embeddings().weight[MARKER] *= 3
    torch.manual_seed(0)
    draws = torch.randint(0, len(make_tokenizer()), (24, 40)).tolist()
    episodes = [sample(ids, [1] * 30 + [0] * 5 + [1] * 5) for ids in draws]
    settings = config(tmp_path / "run", checkpoint, method="eh-grpo", temperature=0.8)
    tokenizer = HFTokenizer(str(checkpoint))
    ids = torch.tensor([[1, 2, 3, *draws[0]]])
    targets = torch.ones_like(ids).bool()
    with torch.no_grad():
        before = PolicyModel(made)(ids, torch.ones_like(ids), targets, MARKER, 0.8)
        line = attach_execute_head(made, "<tool_call>", tokenizer, checkpoint, episodes, settings)
        after = PolicyModel(made)(ids, torch.ones_like(ids), targets, MARKER, 0.8)
    assert "fitted on 840 tokens" in line
    shares = before.execute_log_probs.exp()
    assert shares.max() - shares.min() > 0.3
    assert (after.execute_log_probs.exp() - shares).abs().mean() < 0.2 * shares.mean()


def test_head_is_saved_exactly_and_must_fit(tmp_path: Path) -> None:
    head, other = ExecuteHeadModule(48, MARKER), ExecuteHeadModule(48, MARKER)
    torch.nn.init.normal_(head.weight)
    save_execute_head(head, "<tool_call>", tmp_path)
    load_execute_head(other, tmp_path)
    assert torch.equal(head.weight, other.weight)
    with pytest.raises(ConfigError, match="belongs to another model"):
        load_execute_head(ExecuteHeadModule(47, MARKER), tmp_path)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
async def test_run_trains_the_head_and_the_server_uses_it(
    tmp_path: Path, toy_checkpoint: Path, lora: dict[str, int] | None
) -> None:
    import asyncio

    settings = config(tmp_path / "run", toy_checkpoint, method="eh-grpo", steps=2, save_every=2, lora=lora)
    checkpoint, text = await asyncio.to_thread(run, settings)
    assert "execute head: fitted on" in text
    head = json.loads((checkpoint / "execute_head.json").read_text())
    assert head["marker"] == "<tool_call>"
    if lora is not None:
        return
    assert not [name for name in load_file(checkpoint / "model.safetensors") if "execute_head" in name]
    assert rewards(settings.run_dir)
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    gaps = [entry["logprob_gap"] for entry in history if "logprob_gap" in entry]
    assert gaps[0] < 1e-4  # the engine sampled from the policy of the loss
    engine = TransformersEngine(
        TransformersSettings(model=str(checkpoint), model_name="toy", threads=1, dtype="float32")
    )
    async with serve(make_app(engine, toy_sandbox(), POLICY)) as served:
        reply = await served.openai.chat.completions.create(
            model="toy", messages=[{"role": "user", "content": QUESTION}], seed=1
        )
    assert reply.choices[0].message.content


def test_a_run_resumes_exactly(tmp_path: Path, toy_checkpoint: Path) -> None:
    whole = config(tmp_path / "whole", toy_checkpoint, method="eh-grpo", steps=2, save_every=1)
    expected, _ = run(whole)
    part = config(tmp_path / "part", toy_checkpoint, method="eh-grpo", steps=1, save_every=1)
    run(part)
    found, text = run(config(tmp_path / "part", toy_checkpoint, method="eh-grpo", steps=2, save_every=1))
    assert "execute head: from the checkpoint" in text
    assert_same_run(whole, part, expected, found)
    heads = [json.loads((path / "execute_head.json").read_text()) for path in (expected, found)]
    assert heads[0].keys() == heads[1].keys()
    for name, value in heads[0].items():
        assert value == pytest.approx(heads[1][name], abs=1e-6), name


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_reference_of_a_resumed_run_has_the_head_of_the_start(
    tmp_path: Path, toy_checkpoint: Path, lora: dict[str, int] | None
) -> None:
    def divergences(name: str, steps: int) -> list[float]:
        settings = config(
            tmp_path / name, toy_checkpoint, method="eh-grpo", steps=steps, save_every=1, lora=lora,
            kl_weight=0.1, min_group_std=0.0,
        )  # fmt: skip
        checkpoint, _ = run(settings)
        history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        return [entry["reference_kl"] for entry in history if "reference_kl" in entry]

    whole = divergences("whole", 2)
    divergences("part", 1)
    assert whole[1] > 1e-6
    assert divergences("part", 2) == pytest.approx(whole, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    "changes",
    [{"generation": "vllm", "generation_urls": ["http://x"], "weights_dir": "/w"},
     {"follower_urls": ["http://x"], "weights_dir": "/w"}, {"ray": {}}],
)  # fmt: skip
def test_other_engines_are_rejected(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="with a second head needs generation 'embedded'"):
        config(tmp_path / "run", tmp_path, method="eh-grpo", **changes)
    config(tmp_path / "run", tmp_path, method="eh-grpo", execute_head="marker", **changes)
