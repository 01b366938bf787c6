"""Run the server in this process: start-up messages, draining, and tolerance of HTTP upgrade offers.

Some clients, such as Java's, offer an upgrade to HTTP/2. uvicorn's parser ends such a request after its
headers, since another protocol may follow. RFC 9110 allows a server to ignore the offer; `Http1Protocol`
then reads the body as for any HTTP/1.1 request.
"""

from __future__ import annotations

import gc
import json
import logging
import socket
import time
from types import FrameType
from typing import Any, Final, cast

import httptools
import uvicorn
from fastapi import FastAPI
from rich.console import Console
from rich.markup import escape
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.limits import Drain
from service.common import logs
from service.engines.base import EngineError
from service.sandbox.base import SandboxError
from service.sandbox.docker.settings import default_docker_host
from service.server.settings import Settings
from service.store.database import StoreError

_OFFER: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Http1Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also reads the body of a request with an ignored upgrade offer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = cast("Any", _Parser(self, self.parser))

    @property
    def ignores_upgrade(self) -> bool:
        """Whether the current request offers an upgrade that the server ignores."""
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()

    def on_message_complete(self) -> None:
        """Complete the message, unless the parser merely stopped at the offer."""
        if not self.ignores_upgrade:
            super().on_message_complete()


class _Parser:
    """A parser that resumes after the headers of a request with an ignored upgrade offer."""

    def __init__(self, protocol: Http1Protocol, parser: Any) -> None:
        self._protocol = protocol
        self._parser = parser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> None:
        """Parse ``data``.

        Raises:
            httptools.HttpParserError: the data is not HTTP.
            httptools.HttpParserUpgrade: the protocol changes, for example to WebSocket.
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
        """Continue with a new parser that was fed the same headers without the offer."""
        head = self._parser.get_method() + b" / HTTP/1.1\r\n"
        for name, value in self._protocol.headers:
            if name not in _OFFER:
                head += name + b": " + value + b"\r\n"
        self._parser = httptools.HttpRequestParser(_Rest(self._protocol))
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parser.feed_data(head + b"\r\n")


class _Rest:
    """Parser callbacks that skip the headers of the first message, which were handled already."""

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


_console = Console(stderr=True)


class StartupError(Exception):
    """The server could not start; the message has the reason."""


def serve_forever(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Requests in flight then get ``settings.drain_s`` seconds to finish.

    Raises:
        StartupError: the address is in use, or the checkpoint, engine or sandbox can't be used.
    """
    logs.configure(settings.log_level, settings.log_format)
    with _bind(settings.host, settings.port) as listener:
        lines = [("Model", escape(settings.model)), ("Sandbox", _describe_sandbox(settings))]
        if settings.sandbox_kind == "in-process":
            lines.append(("Docker", _describe_docker()))
        for name, value in lines:
            _console.print(f"{name:8} {value}", highlight=False, soft_wrap=True)
        app = _build(settings)
        server = _Server(app, settings, listener.getsockname()[1])
        try:
            server.run(sockets=[listener])
        except SystemExit:
            failure = getattr(app.state, "failure", None)
            if isinstance(failure, (EngineError, SandboxError, StoreError, OSError)):
                raise StartupError(str(failure)) from failure
            raise


class _Server(uvicorn.Server):
    """A uvicorn server that prints its address and drains before it stops.

    After the first signal it keeps listening, so that new requests get 503 and ``/ready`` fails, until all
    requests have ended or ``drain_s`` has passed. A second signal stops it immediately.
    """

    def __init__(self, app: FastAPI, settings: Settings, port: int) -> None:
        self._app = app
        self._settings = settings
        self._port = port
        self._drain: Drain = app.state.drain
        self._signal: tuple[int, FrameType | None] | None = None
        self._deadline = 0.0
        super().__init__(
            uvicorn.Config(
                app,
                http=Http1Protocol,
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                # Draining has waited already; this applies to the requests that did not finish.
                timeout_graceful_shutdown=1,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signal is not None or not self.started:
            super().handle_exit(sig, frame)
            return
        self._drain.begin()
        self._signal = (sig, frame)
        self._deadline = time.monotonic() + self._settings.drain_s

    async def on_tick(self, counter: int) -> bool:
        over = self._drain.done or time.monotonic() > self._deadline
        if self._signal is not None and over and not self.should_exit:
            super().handle_exit(*self._signal)
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        logger = logging.getLogger("uvicorn.error")
        try:
            logger.disabled = True
            with _console.status("Starting the sandbox and loading the model"):
                await super().startup(sockets)
        finally:
            logger.disabled = False
        # These objects are permanent: full collections would scan all of them and stall every stream.
        gc.collect()
        gc.freeze()
        _console.print(_welcome(self._app, self._settings, self._port), highlight=False, soft_wrap=True)


def _bind(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet: connections are refused until the model is loaded."""
    # IPPROTO_TCP makes asyncio disable Nagle's algorithm (uvloop always does).
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host.strip("[]"), port))
    except OSError as error:
        sock.close()
        raise StartupError(
            f"can't listen on {host}:{port}: {error.strerror}. Another --port may be free"
        ) from None
    return sock


def _build(settings: Settings) -> FastAPI:
    from service.server.app import create_app, locate_model

    try:
        model_dir = locate_model(settings)  # may download for minutes, with its own progress display
        with _console.status("Reading the checkpoint"):
            return create_app(settings, model_dir)
    except ModuleNotFoundError as error:
        extra = "gguf" if settings.engine_kind == "gguf" else "cpu"
        raise StartupError(f"the engine needs {error.name}: pip install 'ih-grpo[{extra}]'") from None
    except (ValueError, EngineError) as error:
        raise StartupError(str(error)) from error


def _describe_sandbox(settings: Settings) -> str:
    if settings.sandbox_kind == "runner":
        many = len(settings.runner_url) > 1
        return f"{'runners' if many else 'runner'} at {escape(', '.join(settings.runner_url))}"
    if settings.sandbox_kind == "process":
        return "processes under bubblewrap: weaker than containers, as accepted (this machine only)"
    return "containers started by this process, which holds the Docker socket (this machine only)"


def _describe_docker() -> str:
    """The daemon's address and a docker command that lists its containers."""
    host = escape(default_docker_host())
    return f"{host} (its containers: docker --host {host} ps)"


def _welcome(app: FastAPI, settings: Settings, port: int) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    body: dict[str, Any] = {
        "model": app.state.server.model_name,
        "messages": [{"role": "user", "content": "What is 739184 times 52967?"}],
    }
    key = ' -H "Authorization: Bearer $KEY"' if settings.keys() else ""
    content = f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    curl = f"curl {url}/v1/chat/completions{key} \\\n  {content}"
    notice = app.state.server.notice
    shown_notice = "" if notice is None else f"\n[yellow]{escape(notice)}[/]\n"
    ready = f"\n[bold green]Ready[/] on [bold]{url}[/]. Open it in a browser, or send a request:"
    return f"{ready}\n\n{escape(curl)}\n{shown_notice}"
