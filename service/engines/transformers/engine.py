"""The embedded engine: a Hugging Face causal LM on the CPU or one GPU, with continuous batching."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from pathlib import Path

import torch

from service.engines.base import OPTIONAL_SAMPLING, EngineError, EngineStats, Sampling, TokenChunk
from service.engines.grammar import GrammarCompiler, is_available
from service.engines.model_config import CheckpointEngine
from service.engines.transformers.runner import ModelRunner
from service.engines.transformers.scheduler import Request, Scheduler
from service.engines.transformers.settings import EngineSettings
from service.engines.transformers.weight_loading import read_weights
from service.engines.transformers.worker import Worker
from service.engines.validation import check


class TransformersEngine(CheckpointEngine):
    """Implements ``service.engines.base.Engine``.

    Requests join and leave a running batch between steps, long prompts are read in chunks beside the
    streams, and each sequence stays in its cache row after its end, so that a prompt that goes on from it
    costs only its new tokens.

    A request's random numbers are its own, so with a seed its tokens don't depend on what shares the batch,
    up to rounding: matrix products of different batch sizes differ in the last bits, and a draw or an
    argmax that falls within that of a boundary (about one in a million in float32, far more often in
    bfloat16) can go the other way.

    LoRA adapters are served beside the model, in one batch with it: a request's ``Sampling.adapter`` says
    which one, and keys and values are shared only between requests of one adapter.

    The constructor reads configuration and tokenizer; ``start`` reads the weights.

    Raises:
        EngineError: the checkpoint can't be served; the message says why.
    """

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings.model, settings.model_name, settings.max_context)
        self._settings = settings
        if self.model_name in settings.adapters:
            raise EngineError(f"adapter {self.model_name!r} has the model's own name: give it another")
        self._grammars = GrammarCompiler(self.tokenizer)
        self._runner: ModelRunner | None = None
        self._worker: Worker | None = None

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset(OPTIONAL_SAMPLING) - (frozenset() if is_available() else {"json_schema"})

    def supports_logprobs(self, _sampling: Sampling) -> bool:
        """Always: they are computed here."""
        return True

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._settings.adapters)

    @property
    def healthy(self) -> bool:
        """Started, not stopped, not given up after failures."""
        return self._worker is not None and self._worker.end is None

    async def start(self) -> None:
        """Load the weights and start the worker thread. An engine starts once."""
        if self._worker is not None:
            raise EngineError("the engine was started before: make a new one")
        settings = self._settings
        runner = await asyncio.to_thread(
            ModelRunner, settings, self._files.config, self._files.context_length
        )
        scheduler = Scheduler(max_slots=settings.max_slots, prefill_chunk=settings.prefill_chunk)
        self._runner = runner
        threads = settings.threads or (1 if runner.is_small else None)
        self._worker = Worker(runner, scheduler, threads=threads)
        self._worker.start()

    async def stop(self) -> None:
        """End the worker; requests that are not done get an EngineError. Does nothing if not started."""
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop)

    def stats(self) -> EngineStats:
        return EngineStats() if self._worker is None else self._worker.stats()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``. Only ``stop_token_ids`` stop: pass ``eos_token_ids`` among them."""
        runner, worker = self._started()
        check(self, prompt_ids, sampling, runner.vocab_size)
        schema = sampling.json_schema
        grammar = None if schema is None else await asyncio.to_thread(self._grammars.compile, schema)
        request = Request(
            tokens=list(prompt_ids),
            sampling=sampling,
            stop_token_ids=frozenset(stop_token_ids),
            context_length=self._files.context_length,
            detokenizer=self._files.detokenizer(),
            loop=asyncio.get_running_loop(),
            grammar=grammar,
        )
        worker.submit(request)
        try:
            while True:
                item = await request.queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            request.cancelled = True  # of no effect where it is done

    async def load_weights(self, source: str | Path | Mapping[str, torch.Tensor]) -> None:
        """Serve new weights of the same architecture: a checkpoint's, or tensors by parameter name.

        They are taken between two steps, all or none. The prefix cache is dropped. Requests that are
        running go on under the new weights, as if these had read all their tokens so far.

        Raises:
            EngineError: the checkpoint can't be read or is another model's, or names or shapes differ;
                the old weights stay.
        """
        runner, worker = self._started()
        if not isinstance(source, Mapping):
            source = await asyncio.to_thread(
                read_weights, str(source), self._files.config, self._files.tokenizer, runner.dtype
            )
        await asyncio.wrap_future(worker.swap_weights(source))

    def _started(self) -> tuple[ModelRunner, Worker]:
        if self._runner is None or self._worker is None:
            raise EngineError("the engine is not started: await start() first")
        return self._runner, self._worker
