"""``ih-grpo serve`` as a separate process, with the quickstart checkpoint and real containers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import openai

START_TIMEOUT_S = 900  # vLLM takes a minute, and minutes on a busy machine
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class ServerProcess:
    """A server that listens at ``url``. ``log()`` is all that it said on stderr."""

    process: subprocess.Popen[str]
    url: str
    _lines: list[str]

    def log(self) -> str:
        return "".join(self._lines)

    def answer(self, question: str) -> str:
        """Return the greedy answer to ``question``. It may take minutes: vLLM's workers share few cores."""
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
            reply = client.chat.completions.create(
                model="quickstart", messages=[{"role": "user", "content": question}], temperature=0
            )
        return reply.choices[0].message.content or ""

    def stop(self) -> int:
        """SIGTERM, and its exit status; killed if it does not end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def start(
    checkpoint: Path, *options: str, program: Sequence[str | Path] = (sys.executable, "-m", "service")
) -> ServerProcess:
    """Start a server on a free port and wait until it says that it is ready."""
    command = [*program, "serve", "--sandbox", "in-process", "--port", "0"]
    command += ["--model", str(checkpoint), "--served-model-name", "quickstart", *options]
    environment = {"IHGRPO_STORE_URL": "sqlite://", **os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        with process.stderr as stream:
            for line in stream:
                lines.append(_ANSI.sub("", line))
                if lines[-1].startswith("Ready on "):
                    ready.set()
        ready.set()  # it ended

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(START_TIMEOUT_S) or process.poll() is not None:
        process.kill()
        process.wait()
        raise RuntimeError(f"the server did not start:\n{''.join(lines)}")
    found = re.search(r"Ready on (http://\S+?)\.", "".join(lines).replace("127.0.0.1", "localhost"))
    assert found is not None
    return ServerProcess(process, found.group(1).replace("localhost", "127.0.0.1"), lines)
