from __future__ import annotations

import asyncio
import threading

import pytest

from trainer.training.rollouts import BackgroundLoop


async def where() -> tuple[asyncio.AbstractEventLoop, str]:
    return asyncio.get_running_loop(), threading.current_thread().name


def test_all_work_runs_in_one_loop_in_another_thread() -> None:
    with BackgroundLoop() as loop:
        first, second = loop.run(where()), loop.run(where())
    assert first == second
    assert first[1] == "episodes"


def test_an_exception_reaches_the_caller() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with BackgroundLoop() as loop, pytest.raises(ValueError, match="no"):
        loop.run(fail())


def test_an_interrupt_cancels_the_work_and_waits_for_its_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    running = threading.Event()

    async def work() -> None:
        try:
            running.set()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            done.append("clean")

    class Interrupted:
        """A future whose waiter is interrupted (Ctrl-C) once the work runs."""

        def __init__(self, inner: object) -> None:
            self.inner = inner

        def result(self, timeout: float | None = None) -> object:
            running.wait()
            raise KeyboardInterrupt

        def cancel(self) -> bool:
            return self.inner.cancel()  # type: ignore[attr-defined,no-any-return]

    submit = asyncio.run_coroutine_threadsafe
    with BackgroundLoop() as loop:
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", lambda *given: Interrupted(submit(*given)))
        with pytest.raises(KeyboardInterrupt):
            loop.run(work())
    assert done == ["clean"]
