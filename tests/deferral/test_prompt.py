from __future__ import annotations

import pytest

from service.deferral.fences import BlockClosed, FenceScanner, MarkerSeen
from service.deferral.observation import observation_ids
from service.deferral.prompt import PROMPTS, instruct
from tests.support.char_tokenizer import CharTokenizer


def test_problem_comes_last_and_unchanged() -> None:
    assert instruct("2 + 2?\n") == PROMPTS["full-v1"] + "2 + 2?\n"


def test_unknown_version_is_named() -> None:
    with pytest.raises(ValueError, match="'full-v9' is unknown; known are full-v1"):
        instruct("x", "full-v9")


def test_the_example_in_the_instruction_speaks_the_protocol() -> None:
    example = PROMPTS["full-v1"].split("Example.")[1]
    events = FenceScanner("<tool_call>").feed(example)
    assert [type(event) for event in events] == [BlockClosed, BlockClosed, MarkerSeen]
    namespace: dict[str, object] = {}
    blocks = [event.code for event in events if isinstance(event, BlockClosed)]
    exec(blocks[0] + "\nresult = " + blocks[1].removeprefix("print"), namespace)
    observation = CharTokenizer().decode(observation_ids(str(namespace["result"]), CharTokenizer()))
    assert observation in example
