"""Base class of the engines that batch requests in a thread of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence

from service.engines.base import (
    OPTIONAL_SAMPLING,
    STRUCTURE_KINDS,
    EngineError,
    EngineStats,
    Sampling,
    TokenChunk,
    check_call,
)
from service.engines.model_config import EngineFiles, FileEngine
from service.engines.transformers.engine_thread import EngineThread
from service.engines.transformers.grammar import GrammarCompiler, is_available
from service.engines.transformers.scheduler import Request


class BatchingEngine(FileEngine):
    """The part of ``service.engines.base.Engine`` that depends only on an `EngineThread`.

    Requests join and leave the running batch between steps. Long prompts are prefilled in chunks beside the
    running streams. Each sequence stays in its cache row after its end, so a prompt that continues it costs
    only its new tokens.

    Each request has its own random numbers, so with a seed its tokens don't depend on the rest of the batch,
    up to rounding: matrix products of different batch sizes differ in the last bits, and a draw or an argmax
    that lies this close to a boundary (about one in a million in float32, far more often in bfloat16) can
    change.
    """

    def __init__(self, files: EngineFiles, model_name: str) -> None:
        super().__init__(files, model_name)
        self._grammars = GrammarCompiler(self.tokenizer)
        self._thread: EngineThread | None = None
        self._rows = 0

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset(OPTIONAL_SAMPLING) - (frozenset() if is_available() else set(STRUCTURE_KINDS))

    def supports_logprobs(self, _sampling: Sampling) -> bool:
        """Always true: this process computes them."""
        return True

    @property
    def adapters(self) -> tuple[str, ...]:
        return ()

    @property
    def healthy(self) -> bool:
        """Whether the engine has started and has neither been stopped nor ended after failures."""
        return self._thread is not None and self._thread.end is None

    async def start(self) -> None:
        """Load the model and start the engine thread. An engine can be started only once."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop the engine thread. Unfinished requests get an EngineError. No effect if the engine was not
        started."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.stop)

    def stats(self) -> EngineStats:
        return EngineStats() if self._thread is None else self._thread.stats()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``. Only ``stop_token_ids`` end the reply: include ``eos_token_ids``."""
        thread = self._started()
        check_call(self, prompt_ids, sampling, self._rows)
        structure = sampling.structure
        grammar = None if structure is None else await asyncio.to_thread(self._grammars.compile, *structure)
        request = Request(
            tokens=list(prompt_ids),
            sampling=sampling,
            stop_token_ids=frozenset(stop_token_ids),
            context_length=self.context_length,
            detokenizer=self._files.detokenizer(),
            loop=asyncio.get_running_loop(),
            grammar=grammar,
        )
        thread.submit(request)
        try:
            while True:
                item = await request.queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            request.cancelled = True  # no effect on a finished request

    def _start_thread(self, thread: EngineThread, vocab_size: int) -> None:
        """Start ``thread``. ``vocab_size`` is the number of rows of the model's embedding."""
        self._thread, self._rows = thread, vocab_size
        thread.start()

    def _started(self) -> EngineThread:
        if self._thread is None:
            raise EngineError("the engine is not started: await start() first")
        return self._thread
