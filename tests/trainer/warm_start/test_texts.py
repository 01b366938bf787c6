from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from service.deferral.policy import ASSISTANT_POLICY, DeferralPolicy
from service.engines.tokenizer import HFTokenizer
from tests.support.tiny_qwen3 import make_tokenizer
from trainer.quickstart.draws import training_trace
from trainer.quickstart.traces import Segment, TraceMix
from trainer.training.supervised import TrainingText
from trainer.warm_start.chat import Exchange
from trainer.warm_start.solved import BOX_REQUEST, SampledSolution
from trainer.warm_start.texts import TextWriter, held_out_texts, solved_texts, training_texts

MIX = TraceMix(natural_share=0.6, detour_share=0.0)
POLICY = DeferralPolicy.model_validate({**ASSISTANT_POLICY.model_dump(), "mode": "deferred"})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(directory)
    return HFTokenizer(str(directory))


def writer_of(tokenizer: HFTokenizer) -> TextWriter:
    assert tokenizer.eos_token_id is not None
    return TextWriter(tokenizer, POLICY, tokenizer.eos_token_id)


def drawn(writer: TextWriter, chat: list[TrainingText], **changes: Any) -> list[TrainingText]:
    arguments: dict[str, Any] = {
        "seed": 0, "mix": MIX, "word_share": 0.5, "marker": "<tool_call>", "chat_share": 0.5,
        "max_tokens": 5000, "step": 0, "count": 6, **changes,
    }  # fmt: skip
    return training_texts(writer, chat, **arguments)


def test_the_model_learns_what_it_writes_and_not_what_it_reads(tokenizer: HFTokenizer) -> None:
    trace = training_trace(0, 1, MIX, "<tool_call>")
    text = writer_of(tokenizer).trace(trace.problem.text, trace.segments)
    learned = [token for token, flag in zip(text.ids, text.learned, strict=True) if flag]
    written = "".join(segment.text for segment in trace.segments if segment.source == "written")
    assert tokenizer.decode(learned) == written + "<|im_end|>"
    whole = tokenizer.decode(text.ids)
    assert trace.problem.text in whole
    assert "You are a helpful assistant" in whole
    assert whole.count("\n```output\n") == sum(segment.source == "observed" for segment in trace.segments)
    marker = tokenizer.token_id("<tool_call>")
    assert [token for token in learned if token == marker]


def test_chat_has_the_same_instruction_and_a_learned_answer(tokenizer: HFTokenizer) -> None:
    text = writer_of(tokenizer).chat(Exchange("Who are you?", "Nobody. <tool_call>"))
    learned = [token for token, flag in zip(text.ids, text.learned, strict=True) if flag]
    assert tokenizer.decode(learned) == "Nobody. <tool_call><|im_end|>"
    assert tokenizer.token_id("<tool_call>") not in learned, "spelled, not the marker itself"
    assert "You are a helpful assistant" in tokenizer.decode(text.ids)


def test_steps_have_their_share_of_chat_and_are_reproducible(tokenizer: HFTokenizer) -> None:
    writer = writer_of(tokenizer)
    chat = [writer.chat(Exchange(f"question {i}", "answer")) for i in range(5)]
    counts = []
    for step in range(4):
        texts = drawn(writer, chat, step=step, count=3)
        assert texts == drawn(writer, chat, step=step, count=3)
        counts.append(sum(text in chat for text in texts))
    assert sum(counts) == 6
    assert set(counts) == {1, 2}
    assert drawn(writer, chat, step=0) != drawn(writer, chat, step=1)
    assert not any(text in chat for text in drawn(writer, chat, chat_share=0.0))
    assert len(drawn(writer, [], chat_share=1.0)) == 6


def test_long_texts_are_left_out(tokenizer: HFTokenizer) -> None:
    writer = writer_of(tokenizer)
    lengths = sorted(len(text.ids) for text in drawn(writer, [], count=20))
    limit = lengths[10]
    assert max(len(text.ids) for text in drawn(writer, [], count=20, max_tokens=limit)) <= limit
    held_out = held_out_texts(writer, seed=0, mix=MIX, word_share=0.5, marker="<tool_call>", max_tokens=limit)
    assert all(len(text.ids) <= limit for text in islice(held_out, 10))


def test_held_out_problems_are_never_trained_on(tokenizer: HFTokenizer) -> None:
    writer = writer_of(tokenizer)
    held_out = list(
        islice(
            held_out_texts(writer, seed=0, mix=MIX, word_share=0.5, marker="<tool_call>", max_tokens=5000), 20
        )
    )
    trained = [text for step in range(20) for text in drawn(writer, [], step=step)]
    assert not any(text in trained for text in held_out)


def solution(question: str, *, delayed: int = 0, verdict: str = "kept") -> SampledSolution:
    segments = (
        Segment("I multiply.\n```python\nprint(6 * 7)\n```<tool_call>", "written"),
        Segment("42", "observed"),
        Segment("\\boxed{42}", "written"),
    )
    return SampledSolution(f"p:{question}", 0, question, 1.0, delayed, verdict, segments)


def test_kept_solutions_become_texts_and_delayed_ones_several(tokenizer: HFTokenizer) -> None:
    solutions = [solution("first"), solution("second", delayed=1), solution("third", verdict="wrong")]
    texts = solved_texts(writer_of(tokenizer), solutions, delayed_weight=3)
    shown = [tokenizer.decode(text.ids) for text in texts]
    assert [sum(name in text for text in shown) for name in ("first", "second", "third")] == [1, 3, 0]
    assert BOX_REQUEST in shown[0]
    assert BOX_REQUEST not in shown[1]
    assert "```<tool_call>\n```output\n42" in shown[0]


def test_solved_problems_have_their_share_of_the_problems(tokenizer: HFTokenizer) -> None:
    writer = writer_of(tokenizer)
    chat = [writer.chat(Exchange("question", "answer"))]
    solved = solved_texts(writer, [solution("a"), solution("b")], delayed_weight=1)
    texts = [
        text
        for step in range(8)
        for text in training_texts(
            writer, chat, solved, seed=0, mix=MIX, word_share=0.5, marker="<tool_call>", chat_share=0.5,
            solved_share=0.5, max_tokens=5000, step=step, count=4,
        )
    ]  # fmt: skip
    assert len(texts) == 32
    assert sum(text in chat for text in texts) == 16
    assert sum(text in solved for text in texts) == 8
