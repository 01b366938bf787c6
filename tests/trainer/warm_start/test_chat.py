from __future__ import annotations

import json
from pathlib import Path

from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from tests.support.tiny_qwen3 import make_checkpoint
from trainer.warm_start.chat import Exchange, load_chat, ordinary_requests, sample_chat, save_chat

TESTED = Path(__file__).parents[2] / "real_model" / "requests.jsonl"


def test_requests_are_different_and_the_same_for_a_seed() -> None:
    requests = ordinary_requests(3, 150)
    assert len(set(requests)) == 150
    assert requests == ordinary_requests(3, 150)
    assert requests != ordinary_requests(4, 150)
    assert len(ordinary_requests(0, 1000)) == 200
    assert any("Python function" in request for request in requests)


def test_no_request_is_one_that_models_are_tested_with() -> None:
    rows = [json.loads(line) for line in TESTED.read_text(encoding="utf-8").splitlines()]
    tested = {message["content"].strip().lower() for row in rows for message in row["messages"]}
    for seed in range(5):
        assert not tested & {request.lower() for request in ordinary_requests(seed, 200)}


async def test_answers_are_the_models_own(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    engine = TransformersEngine(TransformersSettings(model=str(checkpoint), dtype="float32", max_slots=4))
    await engine.start()
    try:
        found = await sample_chat(engine, ["Hi", "Who?", "Why?"], max_tokens=300, marker="<tool_call>")
        again = await sample_chat(engine, ["Hi", "Who?", "Why?"], max_tokens=300, marker="<tool_call>")
        short = await sample_chat(engine, ["Hi"], max_tokens=1, marker="<tool_call>")
    finally:
        await engine.stop()
    assert found == again
    assert short == []
    for exchange in found:
        assert exchange.answer
        assert "<tool_call>" not in exchange.answer
        assert not exchange.answer.endswith("<|im_end|>")


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    exchanges = [Exchange("Wer?", "Ich, natürlich.\nNa also.\u2028Ja.\x85"), Exchange("b", '"c"')]
    save_chat(tmp_path / "chat.jsonl", exchanges)
    assert load_chat(tmp_path / "chat.jsonl") == exchanges
