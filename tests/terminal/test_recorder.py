from __future__ import annotations

from typing import Any

from service.terminal.recorder import Recorder
from service.terminal.timeline import Span


def tool(status: str, **more: Any) -> dict[str, Any]:
    return {"executed_tools": [{"status": status, "blocks": [{"invoked_at": 1000.5}], **more}]}


def test_server_times_are_brought_onto_the_clients_clock() -> None:
    recorder = Recorder()
    recorder.take({"role": "assistant", "content": ""}, 0.0)
    recorder.take({"content": "a"}, 0.1)
    recorder.take(tool("pending"), 0.5)  # so the clocks are 1000 s apart
    recorder.take({"content": "b"}, 0.6)
    recorder.take(tool("running"), 0.9)
    recorder.take(tool("ok", started_at=1000.5, finished_at=1001.25), 1.25)
    recorder.take({"content": "c"}, 1.3)
    recorder.take({}, 1.5)
    assert recorder.spans() == [
        Span("writes", "write", 0.1, 0.9),
        Span("writes", "write", 1.3, 1.5),
        Span("runs 1", "run", 0.5, 1.25),
        Span("waits", "wait", 0.9, 1.25),
    ]


def test_a_flush_that_never_ran_has_no_lane() -> None:
    recorder = Recorder()
    recorder.take(tool("running"), 0.0)
    recorder.take(tool("sandbox_error", started_at=None, finished_at=None), 1.0)
    assert [span.lane for span in recorder.spans()] == ["waits"]
