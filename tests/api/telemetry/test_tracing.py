from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from service.api.telemetry.tracing import open_tracer


class Collector(http.server.BaseHTTPRequestHandler):
    received: list[bytes]

    def do_POST(self) -> None:
        type(self).received.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def collector() -> Iterator[str]:
    Collector.received = []
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        server.shutdown()
        thread.join()


def test_no_traces_without_an_endpoint() -> None:
    tracer, close = open_tracer(None, "0")
    assert not tracer.start_span("x").is_recording()
    close()


def test_remaining_spans_are_sent_at_shutdown(collector: str) -> None:
    tracer, close = open_tracer(collector, "1.2.3")
    tracer.start_span("a span").end()
    close()
    sent = b"".join(Collector.received)
    assert b"a span" in sent
    assert b"ih-grpo" in sent
    assert b"1.2.3" in sent
