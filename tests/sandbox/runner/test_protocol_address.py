from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from service.sandbox.runner.protocol import Address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:/run/r.sock", Address(path=Path("/run/r.sock"))),
        ("unix:///run/r.sock", Address(path=Path("/run/r.sock"))),
        ("127.0.0.1:8100", Address(host="127.0.0.1", port=8100)),
        ("ws://runner:8100", Address(host="runner", port=8100)),
        ("ws://runner:8100/", Address(host="runner", port=8100)),
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
