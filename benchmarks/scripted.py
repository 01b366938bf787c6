"""Parts of benchmarks with a scripted model: a sandbox with a warm container, and a model that keeps writing
after its first block."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.episode.runner import EpisodeRunner
from service.sandbox.base import Sandbox
from service.sandbox.docker.settings import DEFAULT_IMAGE
from service.sandbox.factory import SandboxOptions, create_sandbox, instance_name
from service.sandbox.pooled_sandbox import PooledSandbox
from tests.support.scripted import EOS, ScriptedEngine


@asynccontextmanager
async def warm_sandbox() -> AsyncIterator[PooledSandbox]:
    """Containers of this process, one of them warm."""
    sandbox = create_sandbox(
        SandboxOptions(
            kind="in-process",
            image=os.environ.get("IHGRPO_SANDBOX_IMAGE", DEFAULT_IMAGE),
            pool_size=1,
            max_containers=4,
            queue_timeout_s=300,
            run_limit_s=60,
            instance=instance_name("benchmark"),
        )
    )
    if not isinstance(sandbox, PooledSandbox):
        raise SystemExit("the sandbox has no pool")
    await sandbox.start()
    try:
        yield sandbox
    finally:
        await sandbox.stop()


async def warm_container(sandbox: PooledSandbox) -> None:
    """Wait for a warm container: the start of a container is not what is measured."""
    while not sandbox.stats().idle:  # noqa: ASYNC110  the pool has no event for it
        await asyncio.sleep(0.1)


def two_blocks(sandbox: Sandbox, first: str, text: str, second: str, writes_s: float) -> EpisodeRunner:
    """Return a runner whose model writes a block, 200 characters of text and a block, and then flushes.

    Args:
        sandbox: runs the blocks.
        first: code of the first block.
        text: at least 200 characters.
        second: code of the second block.
        writes_s: time from the end of the first block to the flush, in seconds.
    """
    engine = ScriptedEngine(
        f"```python\n{first}\n```\n{text[:200]}\n```python\n{second}\n```<tool_call>",
        "So \\boxed{1}." + EOS,
        delay_s=writes_s / 230,
    )
    return EpisodeRunner(engine, sandbox, DeferralPolicy(run_limit_s=20), Sampling())
