from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.api.seal import Seal, parse_seal_key
from service.cli.output import explain
from tests.support.response_events import checked, collected
from tests.support.responses_api import ask, prompt, serving
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import settings

OLD, NEW = (
    f"{name}:{base64.b64encode(bytes([number]) * 32).decode()}" for number, name in enumerate(("old", "new"))
)
THOUGHT: Any = {"include": ["reasoning.encrypted_content"], "store": False, "reasoning": {"effort": "low"}}


def seal(*keys: str) -> Seal:
    return Seal([parse_seal_key(key) for key in keys])


@given(st.text(), st.text(alphabet="abc", max_size=3))
def test_sealed_text_can_be_opened(text: str, owner: str) -> None:
    sealed = seal(NEW).close(text, owner=owner, model="m")
    assert sealed.isascii()
    assert seal(NEW).open(sealed, owner=owner, model="m") == text
    assert seal(NEW).open(sealed, owner=owner + "x", model="m") is None
    assert seal(NEW).open(sealed, owner=owner, model="m2") is None


def test_seal_keys_can_be_rotated() -> None:
    sealed = seal(OLD).close("Hm.", owner="", model="m")
    assert seal(NEW, OLD).open(sealed, owner="", model="m") == "Hm."
    assert seal(NEW).open(sealed, owner="", model="m") is None
    assert seal(NEW, OLD).close("Hm.", owner="", model="m").startswith("ihg2.new.")
    assert Seal().open(Seal().close("Hm.", owner="", model="m"), owner="", model="m") is None


@given(st.data())
def test_changed_text_cannot_be_opened(data: st.DataObject) -> None:
    sealed = seal(NEW).close("Hm, let me see.", owner="", model="m")
    at = data.draw(st.integers(0, len(sealed) - 1))
    char = data.draw(st.characters(codec="ascii").filter(lambda char: char != sealed[at]))
    changed = sealed[:at] + char + sealed[at + 1 :]
    assert seal(NEW).open(changed, owner="", model="m") in (None, "Hm, let me see.")
    assert seal(NEW).open(sealed[:at], owner="", model="m") is None


@pytest.mark.parametrize("key", ["", "x", "x:", "x:AAAA", ":" + "A" * 43, "a b:" + "A" * 43])
def test_malformed_key_is_rejected_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="ID:BASE64"):
        parse_seal_key(key)
    if key:
        with pytest.raises(ValidationError) as caught:
            settings(seal_keys=key)
        assert "A" * 43 not in "".join(explain(caught.value))


async def test_sealed_thought_round_trips_through_the_client() -> None:
    scripted = ScriptedEngine("<think>\nLet me see.\n</think>\n\nYes." + EOS)
    async with serving(scripted, seal_keys=f"{NEW},{OLD}") as served:
        first = checked(await collected(await ask(served, **THOUGHT, stream=True)))
        thought, message = first["output"]
        assert "Let me see" not in thought["encrypted_content"]
        kept = {
            "type": "reasoning",
            "id": thought["id"],
            "summary": [],
            "encrypted_content": thought["encrypted_content"],
        }
        again = [{"role": "user", "content": "?"}, kept, message, {"role": "user", "content": "Sure?"}]
        await ask(served, again, **THOUGHT)
        assert "<think>\nLet me see.\n</think>\n\nYes." in prompt(scripted)
        foreign = {**kept, "encrypted_content": "gAAAAABforeign"}
        raw = await served.openai.responses.with_raw_response.create(
            model="scripted", input=[again[0], foreign, *again[2:]], **THOUGHT
        )
    assert raw.headers["x-ih-grpo-ignored"] == "input[1].encrypted_content"
    assert "Let me see" not in prompt(scripted)


async def test_thoughts_are_sealed_on_request_only() -> None:
    async with serving(ScriptedEngine("<think>\nHm.\n</think>\n\nYes." + EOS)) as served:
        response = await ask(served)
    assert response.output[0].type == "reasoning"
    assert response.output[0].encrypted_content is None
