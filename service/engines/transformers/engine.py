"""The embedded engine: a Hugging Face causal LM on the CPU or one GPU, with continuous batching."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from pathlib import Path

import torch

from service.engines import execute_head
from service.engines.base import (
    OPTIONAL_SAMPLING,
    STRUCTURE_KINDS,
    EngineError,
    EngineStats,
    Sampling,
    TokenChunk,
    check_call,
)
from service.engines.model_config import CheckpointEngine
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine_thread import EngineThread
from service.engines.transformers.grammar import GrammarCompiler, is_available
from service.engines.transformers.runner import ModelRunner
from service.engines.transformers.scheduler import Request, Scheduler
from service.engines.transformers.weight_loading import read_weights


class TransformersEngine(CheckpointEngine):
    """Implements ``service.engines.base.Engine``.

    Requests join and leave the running batch between steps. Long prompts are prefilled in chunks beside the
    running streams. Each sequence stays in its cache row after its end, so a prompt that continues it costs
    only its new tokens.

    Each request has its own random numbers, so with a seed its tokens don't depend on the rest of the batch,
    up to rounding: matrix products of different batch sizes differ in the last bits, and a draw or an argmax
    that lies this close to a boundary (about one in a million in float32, far more often in bfloat16) can
    change.

    LoRA adapters are served in the same batch as the model. ``Sampling.adapter`` selects one, and keys and
    values are shared only between requests of the same adapter.

    The constructor reads configuration and tokenizer; ``start`` reads the weights.

    Raises:
        EngineError: the checkpoint can't be served; the message says why.
    """

    def __init__(self, settings: TransformersSettings) -> None:
        super().__init__(settings.model, settings.model_name, settings.max_context)
        self._settings = settings
        if self.model_name in settings.adapters:
            raise EngineError(f"adapter {self.model_name!r} has the same name as the model: rename it")
        self._grammars = GrammarCompiler(self.tokenizer)
        self._runner: ModelRunner | None = None
        self._thread: EngineThread | None = None

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset(OPTIONAL_SAMPLING) - (frozenset() if is_available() else set(STRUCTURE_KINDS))

    def supports_logprobs(self, _sampling: Sampling) -> bool:
        """Always true: this process computes them."""
        return True

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._settings.adapters)

    @property
    def healthy(self) -> bool:
        """Whether the engine has started and has neither been stopped nor ended after failures."""
        return self._thread is not None and self._thread.end is None

    async def start(self) -> None:
        """Load the weights and start the engine thread. An engine can be started only once."""
        if self._thread is not None:
            raise EngineError("the engine was already started: create a new one")
        settings = self._settings
        runner = await asyncio.to_thread(
            ModelRunner, settings, self._files.config, self._files.context_length
        )
        if (head := self._read_head(settings.model)) is not None:
            runner.set_execute_head(*head)
        scheduler = Scheduler(max_slots=settings.max_slots, prefill_chunk=settings.prefill_chunk)
        self._runner = runner
        threads = settings.threads or (1 if runner.is_small else None)
        self._thread = EngineThread(runner, scheduler, threads=threads)
        self._thread.start()

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
        runner, thread = self._started()
        check_call(self, prompt_ids, sampling, runner.vocab_size)
        structure = sampling.structure
        grammar = None if structure is None else await asyncio.to_thread(self._grammars.compile, *structure)
        request = Request(
            tokens=list(prompt_ids),
            sampling=sampling,
            stop_token_ids=frozenset(stop_token_ids),
            context_length=self._files.context_length,
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

    async def load_weights(
        self, source: str | Path | Mapping[str, torch.Tensor], *, version: int = 0
    ) -> None:
        """Replace the weights by those of a checkpoint, or by tensors by parameter name, of the same
        architecture.

        The swap happens between two steps, for all weights or none, and drops the prefix cache. Running
        requests continue with the new weights; their tokens so far are prefilled again.

        Args:
            source: a checkpoint's directory or hub id, or tensors.
            version: reported by `TokenChunk.weights_version` of later tokens.

        Raises:
            EngineError: the checkpoint can't be read or belongs to another model, or names or shapes differ.
            The old weights stay in place.
        """
        runner, thread = self._started()
        if not isinstance(source, Mapping):
            directory = str(source)
            source = await asyncio.to_thread(
                read_weights, directory, self._files.config, self._files.tokenizer, runner.dtype
            )
            if (head := self._read_head(directory)) is not None:
                names = (f"{execute_head.PREFIX}{name}" for name in ("marker_id", "weight", "bias"))
                source = {**source, **dict(zip(names, (torch.tensor(head[0]), *head[1:]), strict=True))}
        await asyncio.wrap_future(thread.swap_weights(source, version))

    def _read_head(self, model: str) -> tuple[int, torch.Tensor, torch.Tensor] | None:
        """Return marker id, weight and bias of the checkpoint's execute head, or None without one."""
        head = execute_head.ExecuteHead.load(Path(model))
        if head is None:
            return None
        marker_id = self.tokenizer.token_id(head.marker)
        if marker_id is None:
            raise EngineError(f"{model}: the execute head's marker {head.marker!r} is not a token")
        return marker_id, torch.tensor(head.weight), torch.tensor(head.bias)

    def _started(self) -> tuple[ModelRunner, EngineThread]:
        if self._runner is None or self._thread is None:
            raise EngineError("the engine is not started: await start() first")
        return self._runner, self._thread
