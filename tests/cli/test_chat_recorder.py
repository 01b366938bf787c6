from __future__ import annotations

from typing import Any

from service.cli.chat import Recorder
from service.cli.timeline import Span


def tool(status: str, **more: Any) -> dict[str, Any]:
    return {"executed_tools": [{"status": status, "blocks": [{"invoked_at": 1000.5}], **more}]}


def test_the_clients_times_are_brought_onto_the_servers_clock() -> None:
    recorder = Recorder()
    recorder.take({"role": "assistant", "content": ""}, 0.0)
    recorder.take({"content": "a"}, 0.25)
    recorder.take(tool("pending"), 0.5)  # so the clocks are 1000 s apart
    recorder.take({"content": "b"}, 0.6)
    recorder.take(tool("running"), 1.0)
    run = {"started_at": 1000.5, "finished_at": 1001.25}
    recorder.take(tool("ok", flushed_at=1001.0, waited_ms=250, runs=[run]), 1.25)
    recorder.take({"content": "c"}, 1.3)
    recorder.take({}, 1.5)
    assert recorder.spans() == [
        Span("writes", "write", 1000.25, 1001.0),
        Span("writes", "write", 1001.25, 1001.5),
        Span("block 1", "run", 1000.5, 1001.25),
        Span("waits", "wait", 1001.0, 1001.25),
    ]


def test_nothing_was_said() -> None:
    assert Recorder().spans() == []
