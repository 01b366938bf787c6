"""HTTP/1.1 for clients that offer an upgrade, as Java's does to HTTP/2: the offer is ignored, not the body.

The parser below uvicorn ends a request with ``Upgrade`` at its headers, since another protocol may follow.
RFC 9110 lets a server ignore the field, and the request is then an ordinary one of HTTP/1.1.
"""

from __future__ import annotations

from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Http1Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, which reads the body of a request whose upgrade it does not take."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = cast("Any", _Parser(self, self.parser))

    @property
    def ignores_upgrade(self) -> bool:
        """Whether the request at hand offers an upgrade that is not taken."""
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()

    def on_message_complete(self) -> None:
        """The message is complete, unless the parser has only given up at the offer."""
        if not self.ignores_upgrade:
            super().on_message_complete()


class _Parser:
    """A parser that resumes after the headers of a request with an upgrade that is not taken."""

    def __init__(self, protocol: Http1Protocol, parser: Any) -> None:
        self._protocol = protocol
        self._parser = parser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> None:
        """Parse ``data``.

        Raises:
            httptools.HttpParserError: it is not HTTP.
            httptools.HttpParserUpgrade: the protocol changes, as to WebSocket.
        """
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._protocol.ignores_upgrade:
                    raise
                data = data[upgrade.args[0] :]
                self._resume()
            else:
                return

    def _resume(self) -> None:
        """Continue with a new parser that has read the same headers without the offer."""
        head = self._parser.get_method() + b" / HTTP/1.1\r\n"
        for name, value in self._protocol.headers:
            if name not in _OFFER:
                head += name + b": " + value + b"\r\n"
        self._parser = httptools.HttpRequestParser(_Rest(self._protocol))
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parser.feed_data(head + b"\r\n")


class _Rest:
    """Passes on what a parser finds after the headers of its first message, which are known already."""

    def __init__(self, protocol: Http1Protocol) -> None:
        self._protocol = protocol
        self._is_known = True

    def on_message_begin(self) -> None:
        if not self._is_known:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_known:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_known:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._is_known:
            self._protocol.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        self._is_known = False
        self._protocol.on_message_complete()
