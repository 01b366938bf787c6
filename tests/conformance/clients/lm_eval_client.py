"""lm-evaluation-harness: log-likelihoods of echoed prompts, and generated answers over both APIs."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from harness import BASE_URL, HELLO, KEY, MODEL, feature, run

folder = Path(tempfile.mkdtemp())
os.environ.update(OPENAI_API_KEY=KEY, HF_HOME=str(folder), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import lm_eval  # noqa: E402  reads the environment
from lm_eval.tasks import TaskManager  # noqa: E402

QUESTIONS = [
    {"question": "Is the sky blue?", "choices": ["no, it never is", "yes"], "answer": 1, "reply": HELLO},
    {
        "question": "Is ice warm?",
        "choices": ["no", "yes, always and everywhere"],
        "answer": 0,
        "reply": HELLO,
    },
]
COMMON = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}}}
CHOICE = {
    **COMMON,
    "task": "ours_choice",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}
REPLY = {
    **COMMON,
    "task": "ours_reply",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{reply}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 40},
    "metric_list": [{"metric": "exact_match"}],
}
(folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))


def score(model: str, path: str, task: dict[str, object], metric: str, **options: object) -> float:
    arguments = {
        "model": MODEL,
        "base_url": f"{BASE_URL}{path}",
        "max_retries": 1,
        "auth_token": KEY,
        **options,
    }
    results = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=[task], task_manager=TaskManager(), bootstrap_iters=0,
        apply_chat_template="chat" in path,
    )  # fmt: skip
    return results["results"][task["task"]][f"{metric},none"]


@feature("log-probabilities")
def logprobs() -> None:
    # The server's log-probabilities fall with the length of the text, so the shorter choice wins.
    assert score("local-completions", "/completions", CHOICE, "acc", tokenizer_backend="remote") == 1.0


@feature("text completions")
def completions() -> None:
    for options in (
        {"tokenizer_backend": "remote"},
        {"tokenizer_backend": None, "tokenized_requests": False},
    ):
        assert score("local-completions", "/completions", REPLY, "exact_match", **options) == 1.0


@feature("chat")
def chat() -> None:
    options = {"tokenizer_backend": None, "tokenized_requests": False}
    assert score("local-chat-completions", "/chat/completions", REPLY, "exact_match", **options) == 1.0


run()
