from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sandbox.base import ExecutionResult, QueueTimeoutError, SandboxError, Status
from service.sandbox.runner import protocol as wire

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too
results = st.builds(
    ExecutionResult,
    stdout=any_text,
    stderr=any_text,
    status=st.sampled_from(get_args(Status)),
    wall_seconds=st.floats(0, 100),
    waited_seconds=st.floats(0, 100),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    started_at=st.none() | st.floats(0, 2e9),
    finished_at=st.none() | st.floats(0, 2e9),
)


@given(any_text)
def test_any_code_travels(code: str) -> None:
    request = wire.invoke(code)
    assert wire.decode_request(wire.encode(request)) == request
    if not any("\ud800" <= char <= "\udfff" for char in code):
        assert request.code == code


def test_a_lone_surrogate_keeps_its_meaning_in_a_literal() -> None:
    code = wire.invoke("x = '\udc80'").code
    scope: dict[str, str] = {}
    exec(code, scope)
    assert scope["x"] == "\udc80"


@given(results)
def test_any_result_travels(result: ExecutionResult) -> None:
    reply = wire.flushed(result)
    assert wire.decode_reply(wire.encode(reply)) == reply
    assert reply.result.status == result.status


@given(st.text() | st.binary() | st.none())
def test_junk_is_refused_and_not_repeated(frame: str | bytes | None) -> None:
    for decode in (wire.decode_request, wire.decode_reply):
        with pytest.raises(wire.MessageError):
            decode(frame)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"type": "invoke"}, "invoke.code"),
        ({"type": "invoke", "code": 1}, "invoke.code"),
        ({"type": "invoke", "code": ["x"]}, "invoke.code"),
        ({"type": "invoke", "code": "x" * (wire.MAX_CODE_CHARS + 1)}, "invoke.code"),
        ({"type": "invoke", "code": "x", "image": "evil"}, "invoke.image"),
        ({"type": "open", "run_limit_s": 3.0, "eager": True, "privileged": True}, "open.privileged"),
        ({"type": "open", "run_limit_s": "3", "eager": True}, "open.run_limit_s"),
        ({"type": "open", "run_limit_s": 0, "eager": True}, "open.run_limit_s"),
        ({"type": "open", "run_limit_s": float("nan"), "eager": True}, "open.run_limit_s"),
        ({"type": "open", "run_limit_s": float("inf"), "eager": True}, "open.run_limit_s"),
        ({"type": "open", "run_limit_s": 3.0, "eager": 1}, "open.eager"),
        ({"type": "exec"}, "frame"),
        ([], "frame"),
    ],
)
def test_each_field_is_checked_and_named(fields: object, where: str) -> None:
    with pytest.raises(wire.MessageError, match=rf"^{where}: ") as caught:
        wire.decode_request(json.dumps(fields))
    assert "evil" not in str(caught.value)


def test_a_reply_with_a_foreign_field_is_refused() -> None:
    good = json.loads(wire.encode(wire.flushed(ExecutionResult("", "", "ok", 0.0, 0.0))))
    good["result"]["status"] = "fine"
    with pytest.raises(wire.MessageError, match="status"):
        wire.decode_reply(json.dumps(good))
    good["result"].update(status="ok", pickle="gASV")
    with pytest.raises(wire.MessageError, match="pickle"):
        wire.decode_reply(json.dumps(good))


def test_code_that_is_too_long_is_refused_before_it_is_sent() -> None:
    assert wire.invoke("x" * wire.MAX_CODE_CHARS)
    with pytest.raises(wire.MessageError, match="1000001 characters"):
        wire.invoke("x" * (wire.MAX_CODE_CHARS + 1))


@pytest.mark.parametrize(
    ("error", "reason"),
    [(QueueTimeoutError("full"), "queue_timeout"), (SandboxError("x" * 9999), "sandbox_error")],
)
def test_errors_travel(error: SandboxError, reason: str) -> None:
    reply = wire.decode_reply(wire.encode(wire.failed(error)))
    assert isinstance(reply, wire.Failed)
    assert reply.reason == reason
    assert str(error).startswith(reply.text)
