"""Count the source files that a chat request crosses, from its route to the sandbox and back.

A file is crossed if one of its functions is called while the request is served: in the event loop, in the
engine's thread or in a thread of the executor. The server is complete, with the quickstart checkpoint on the
embedded engine and containers of its own.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
from fastapi import FastAPI

from service.server.app import create_app
from tests.support.serving import Served, serve, settings

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

ROOT: Final = Path(__file__).parents[2]
MAX_FILES: Final = 44
HTTP_LAYERS: Final = ("service/server/run.py", "service/api/middleware.py", "service/playground/files.py")
"""Crossed before the route: the web server's protocol and the middleware."""
CONTAINERS: Final = (
    "service/sandbox/docker/",
    "service/sandbox/worker_program.py",
    "service/common/process_id.py",
)
"""Crossed by background tasks that start the pool's next container and remove the last one."""
QUESTION: Final = "What is 739184 times 52967 plus 90412 times 33771?"


class CallRecorder:
    """Source files in which a function was called while ``is_on``."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.is_on = False

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(f"{ROOT}/service/"):
            self.files.add(str(Path(frame.f_code.co_filename).relative_to(ROOT)))


@pytest.fixture
def recorder() -> Iterator[CallRecorder]:
    recorder = CallRecorder()
    threading.setprofile(recorder.profile)  # for threads that start from now on
    sys.setprofile(recorder.profile)
    yield recorder
    sys.setprofile(None)
    threading.setprofile(None)  # type: ignore[arg-type]


@pytest.fixture
def app(recorder: CallRecorder, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    for interval in ("service.api.responses.registry._BEAT_S", "service.api.files.containers._SWEEP_S"):
        monkeypatch.setattr(interval, 3600.0)  # no maintenance in between
    return create_app(settings(model=str(checkpoint), served_model_name="quickstart", warm_containers=2))


async def ask(served: Served, *, stream: bool) -> list[str]:
    """Return the statuses of executed tools in the order of their arrival."""
    reply: Any = await served.openai.chat.completions.create(
        model="quickstart",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        stream=stream,
    )
    if not stream:
        return [tool["status"] for tool in reply.choices[0].message.executed_tools]
    deltas = [choice.delta async for chunk in reply for choice in chunk.choices]
    return [tool["status"] for delta in deltas for tool in getattr(delta, "executed_tools", None) or ()]


async def test_chat_request_crosses_few_files(app: FastAPI, recorder: CallRecorder) -> None:
    async with serve(app) as served:
        await ask(served, stream=False)  # fills caches and imports
        for stream in (False, True):
            recorder.files = set()
            recorder.is_on = True
            statuses = await ask(served, stream=stream)
            recorder.is_on = False
            assert statuses[-1] == "ok"
            outside = {file for file in recorder.files if file.startswith((*HTTP_LAYERS, *CONTAINERS))}
            path = recorder.files - outside
            print(
                f"{'streamed' if stream else 'plain'} request: {len(path)} files", *sorted(path), sep="\n  "
            )
            print(f"outside of the path: {len(outside)} files", *sorted(outside), sep="\n  ")
            assert {"service/api/chat/route.py", "service/sandbox/session.py"} <= path
            assert len(path) <= MAX_FILES
