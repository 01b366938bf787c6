"""Draining after SIGTERM, in a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "?"}], "stream": True}


@contextmanager
def server(drain_s: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "tests.support.slow_server", str(drain_s)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().split()[1]}"
        until_up(url)
        yield process, url
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def until_up(url: str) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError(url)


def test_drain_finishes_streams_and_rejects_new_requests() -> None:
    with (
        server(drain_s=60) as (process, url),
        httpx.Client(base_url=url, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=BODY) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        # The server accepts requests until it has handled the signal.
        while (ready := httpx.get(f"{url}/ready")).status_code == 200:
            time.sleep(0.01)
        assert ready.json()["status"] == "going down"
        refused = httpx.post(f"{url}/v1/chat/completions", json=BODY)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"stop"' in rest[-2]
        assert process.wait(60) == -signal.SIGTERM
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


@pytest.mark.parametrize("signals", [1, 2])
def test_drain_timeout_and_second_signal_abort_requests(signals: int) -> None:
    # One signal without time to drain, or two signals with any time.
    with (
        server(drain_s=0 if signals == 1 else 600) as (process, url),
        httpx.Client(base_url=url, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=BODY) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert process.wait(60) == -signal.SIGTERM
        assert not any('"finish_reason":"stop"' in line for line in rest(lines))


def rest(lines: Iterator[str]) -> Iterator[str]:
    try:
        yield from lines
    except httpx.TransportError:
        return
