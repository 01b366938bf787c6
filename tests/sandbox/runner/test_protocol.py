from __future__ import annotations

import json
import socket
import stat
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sandbox.base import ExecutionResult, QueueTimeoutError, SandboxError, Status
from service.sandbox.runner import protocol
from service.sandbox.runner.protocol import Address

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
def test_round_trip_of_any_code(code: str) -> None:
    request = protocol.invoke_request(code)
    assert protocol.decode_request(protocol.encode(request)) == request
    if not any("\ud800" <= char <= "\udfff" for char in code):
        assert request.code == code


def test_a_lone_surrogate_keeps_its_meaning_in_a_string_literal() -> None:
    code = protocol.invoke_request("x = '\udc80'").code
    scope: dict[str, str] = {}
    exec(code, scope)
    assert scope["x"] == "\udc80"


@given(results)
def test_round_trip_of_any_result(result: ExecutionResult) -> None:
    reply = protocol.flushed_reply(result)
    assert protocol.decode_reply(protocol.encode(reply)) == reply
    assert reply.result.status == result.status


@given(st.text() | st.binary() | st.none())
def test_rejects_arbitrary_frames(frame: str | bytes | None) -> None:
    for decode in (protocol.decode_request, protocol.decode_reply):
        with pytest.raises(protocol.MessageError):
            decode(frame)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"type": "invoke"}, "invoke.code"),
        ({"type": "invoke", "code": 1}, "invoke.code"),
        ({"type": "invoke", "code": ["x"]}, "invoke.code"),
        ({"type": "invoke", "code": "x" * (protocol.MAX_CODE_CHARS + 1)}, "invoke.code"),
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
def test_rejects_invalid_fields_and_names_them(fields: object, where: str) -> None:
    with pytest.raises(protocol.MessageError, match=rf"^{where}: ") as caught:
        protocol.decode_request(json.dumps(fields))
    assert "evil" not in str(caught.value)


def test_rejects_a_reply_with_an_unknown_field() -> None:
    good = json.loads(protocol.encode(protocol.flushed_reply(ExecutionResult("", "", "ok", 0.0, 0.0))))
    good["result"]["status"] = "fine"
    with pytest.raises(protocol.MessageError, match="status"):
        protocol.decode_reply(json.dumps(good))
    good["result"].update(status="ok", pickle="gASV")
    with pytest.raises(protocol.MessageError, match="pickle"):
        protocol.decode_reply(json.dumps(good))


def test_rejects_long_code_before_sending_it() -> None:
    assert protocol.invoke_request("x" * protocol.MAX_CODE_CHARS)
    with pytest.raises(protocol.MessageError, match="1000001 characters"):
        protocol.invoke_request("x" * (protocol.MAX_CODE_CHARS + 1))


@pytest.mark.parametrize(
    ("error", "reason"),
    [(QueueTimeoutError("full"), "queue_timeout"), (SandboxError("x" * 9999), "sandbox_error")],
)
def test_round_trip_of_errors(error: SandboxError, reason: str) -> None:
    reply = protocol.decode_reply(protocol.encode(protocol.failed_reply(error)))
    assert isinstance(reply, protocol.FailedReply)
    assert reply.reason == reason
    assert str(error).startswith(reply.text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:/run/r.sock", Address(path=Path("/run/r.sock"))),
        ("unix:///run/r.sock", Address(path=Path("/run/r.sock"))),
        ("127.0.0.1:8100", Address(host="127.0.0.1", port=8100)),
        ("ws://runner:8100", Address(host="runner", port=8100, scheme="ws")),
        ("wss://runner:8100/", Address(host="runner", port=8100, scheme="wss")),
        ("[::1]:0", Address(host="::1", port=0)),
    ],
)
def test_parses_addresses(text: str, expected: Address) -> None:
    assert Address.parse(text) == expected
    assert Address.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "8100", ":8100", "host:", "host:x", "host:65536", "unix:r.sock", "http://a/b:1"]
)
def test_rejects_invalid_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"write unix:/path|must be absolute"):
        Address.parse(text)


def test_a_unix_socket_has_its_mode_and_replaces_a_stale_file(tmp_path: Path) -> None:
    address = Address(path=tmp_path / "r.sock")
    assert address.path is not None
    address.listen(0o600).close()  # the file stays, as after a kill
    with address.listen(0o660):
        assert stat.S_IMODE(address.path.stat().st_mode) == 0o660
        with pytest.raises(OSError, match="in use"):
            address.listen(0o600)


def test_does_not_replace_a_file_that_is_not_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="not a socket"):
        Address(path=path).listen(0o600)
    assert path.read_text() == "mine"


def test_listens_on_tcp() -> None:
    with Address.parse("127.0.0.1:0").listen(0o600) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
