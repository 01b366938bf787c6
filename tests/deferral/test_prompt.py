from __future__ import annotations

import hashlib

import pytest

from service.deferral.observation import observation_ids
from service.deferral.prompt import PROMPTS, ControlText, TokenIds, instruct, with_instruction
from service.deferral.scanner import BlockClosed, FenceScanner, MarkerSeen
from tests.support.char_tokenizer import CharTokenizer


def test_the_problem_comes_last_and_unchanged() -> None:
    assert instruct("2 + 2?\n") == PROMPTS["full-v1"] + "2 + 2?\n"


def test_names_an_unknown_version() -> None:
    with pytest.raises(ValueError, match="unknown prompt version 'full-v9'; known versions: full-v1"):
        instruct("x", "full-v9")


def test_the_example_in_the_instruction_follows_the_protocol() -> None:
    example = PROMPTS["full-v1"].split("Example.")[1]
    events = FenceScanner("<tool_call>").feed(example)
    assert [type(event) for event in events] == [BlockClosed, BlockClosed, MarkerSeen]
    namespace: dict[str, object] = {}
    blocks = [event.code for event in events if isinstance(event, BlockClosed)]
    exec(blocks[0] + "\nresult = " + blocks[1].removeprefix("print"), namespace)
    observation = CharTokenizer().decode(observation_ids(str(namespace["result"]), CharTokenizer()))
    assert observation in example


@pytest.mark.parametrize(("version", "digest"), [
    ("full-v1", "e1244932ad330125cdc15d3ced573943c27733c38551bcef09dc3e609eb61da4"),
    ("brief-v1", "956e07be0e9630e91164bf3b0e2e91617d1b1cb867c917a954258a783aae32a6"),
])  # fmt: skip
def test_prompts_of_trained_checkpoints_are_unchanged(version: str, digest: str) -> None:
    assert hashlib.sha256(PROMPTS[version].encode()).hexdigest() == digest


def test_the_instruction_precedes_the_last_user_message() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [TokenIds((1,))]},
             {"role": "user", "content": "b"}]  # fmt: skip
    assert with_instruction(turns, "full-v1") == [
        *turns[:2], {"role": "user", "content": [ControlText(PROMPTS["full-v1"]), "b"]},
    ]  # fmt: skip
    assert turns[2]["content"] == "b"


def test_the_instruction_precedes_the_last_system_message_without_a_user_message() -> None:
    turns: list[dict[str, object]] = [
        {"role": "system", "content": "a"},
        {"role": "system", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    carried = {"role": "system", "content": [ControlText(PROMPTS["full-v1"]), "b"]}
    assert with_instruction(turns, "full-v1") == [turns[0], carried, turns[2]]
    with pytest.raises(ValueError, match="no user or system message"):
        with_instruction(turns[2:], "full-v1")


def test_the_assistant_instruction_precedes_the_clients_system_message() -> None:
    instruction = ControlText(PROMPTS["assistant-v1"])
    user = {"role": "user", "content": "a"}
    assert with_instruction([user], "assistant-v1") == [{"role": "system", "content": [instruction]}, user]
    system = {"role": "system", "content": "Be brief."}
    merged = {"role": "system", "content": [instruction, "\n\n", "Be brief."]}
    assert with_instruction([system, user, user], "assistant-v1") == [merged, user, user]
