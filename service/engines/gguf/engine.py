"""The GGUF engine: llama.cpp in this process, with continuous batching and the embedded engine's sampling."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.engines.base import EngineError
from service.engines.gguf.files import GGUFFiles
from service.engines.gguf.runner import LlamaRunner
from service.engines.settings import GGUFSettings
from service.engines.transformers.batching import BatchingEngine
from service.engines.transformers.engine_thread import EngineThread
from service.engines.transformers.scheduler import Scheduler


class GGUFEngine(BatchingEngine):
    """Implements ``service.engines.base.Engine`` for one GGUF file.

    All sequences share one KV cache of a fixed number of tokens. If it is full, idle sequences are removed
    first; then the newest running one waits until another one ends, and is prefilled again.

    The constructor reads the metadata; ``start`` loads the weights.

    Raises:
        EngineError: the file can't be served; the message says why.
        ModuleNotFoundError: llama-cpp-python is not installed.
    """

    def __init__(self, settings: GGUFSettings) -> None:
        files = GGUFFiles(
            Path(settings.model),
            max_context=settings.max_context,
            cache_tokens=settings.cache_tokens,
            sequences=settings.max_slots,
        )
        super().__init__(files, settings.model_name or Path(settings.model).stem)
        self._settings = settings
        self._metadata = files
        self._runner: LlamaRunner | None = None

    async def start(self) -> None:
        """Load the model and start the engine thread. An engine can be started only once."""
        if self._thread is not None:
            raise EngineError("the engine was already started: create a new one")
        settings = self._settings
        # Not in a thread of ``asyncio.to_thread``: it does not end, nor do the threads that OpenMP starts
        # in it for its first pass. With more threads than cores, OpenMP's barriers sleep instead of
        # spinning, and a token takes 1.5 times as long.
        loader = ThreadPoolExecutor(1, thread_name_prefix="gguf-load")
        try:
            loading = asyncio.get_running_loop().run_in_executor(
                loader, LlamaRunner, settings, self._metadata
            )
            runner = await loading
        finally:
            loader.shutdown(wait=False)
        self._runner = runner
        scheduler = Scheduler(max_slots=settings.max_slots, prefill_chunk=settings.prefill_chunk)
        # The thread only samples; llama.cpp has its own threads, and torch's would wait for them.
        self._start_thread(EngineThread(runner, scheduler, threads=1), runner.vocab_size)

    async def stop(self) -> None:
        """Stop the engine thread and free the model. Unfinished requests get an EngineError."""
        await super().stop()
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await asyncio.to_thread(runner.close)
