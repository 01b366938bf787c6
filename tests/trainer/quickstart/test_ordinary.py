from __future__ import annotations

from random import Random

from service.deferral.answer import last_boxed
from trainer.quickstart.ordinary import HONEST_REPLY, ordinary, ordinary_text
from trainer.quickstart.traces import TraceMix, write_trace


def test_honest_reply_has_no_code_and_no_box() -> None:
    trace = write_trace(ordinary(Random(0)), Random(0), TraceMix(detour_share=1), "<tool_call>")
    assert [segment.text for segment in trace.segments] == [HONEST_REPLY]
    assert "```" not in HONEST_REPLY
    assert last_boxed(HONEST_REPLY) is None
    assert HONEST_REPLY.count('"') == 4, "two examples"


def test_texts_are_diverse_with_many_scripts() -> None:
    texts = [ordinary_text(Random(seed)) for seed in range(2000)]
    assert all(text.strip() or text for text in texts)
    assert len(set(texts)) > 1800
    assert sum(not text.isascii() for text in texts) > 100
    assert sum(any(c.isdigit() for c in text) for text in texts) > 200
