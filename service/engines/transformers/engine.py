"""The embedded engine: a Hugging Face causal LM on the CPU or one GPU, with continuous batching."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import torch

from service.engines import execute_head
from service.engines.base import EngineError
from service.engines.model_config import ModelFiles
from service.engines.settings import TransformersSettings
from service.engines.transformers.batching import BatchingEngine
from service.engines.transformers.engine_thread import EngineThread
from service.engines.transformers.runner import ModelRunner
from service.engines.transformers.scheduler import Scheduler
from service.engines.transformers.weight_loading import read_weights


class TransformersEngine(BatchingEngine):
    """Implements ``service.engines.base.Engine``.

    LoRA adapters are served in the same batch as the model. ``Sampling.adapter`` selects one, and keys and
    values are shared only between requests of the same adapter.

    The constructor reads configuration and tokenizer; ``start`` reads the weights.

    Raises:
        EngineError: the checkpoint can't be served; the message says why.
    """

    def __init__(self, settings: TransformersSettings) -> None:
        files = ModelFiles(settings.model, settings.max_context)
        super().__init__(files, settings.model_name or Path(settings.model).name)
        self._config = files.config
        self._settings = settings
        if self.model_name in settings.adapters:
            raise EngineError(f"adapter {self.model_name!r} has the same name as the model: rename it")
        self._runner: ModelRunner | None = None

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._settings.adapters)

    async def start(self) -> None:
        """Load the weights and start the engine thread. An engine can be started only once."""
        if self._thread is not None:
            raise EngineError("the engine was already started: create a new one")
        settings = self._settings
        runner = await asyncio.to_thread(ModelRunner, settings, self._config, self.context_length)
        if (head := self._read_head(settings.model)) is not None:
            runner.set_execute_head(*head)
        self._runner = runner
        threads = settings.threads or (1 if runner.is_small else None)
        scheduler = Scheduler(max_slots=settings.max_slots, prefill_chunk=settings.prefill_chunk)
        self._start_thread(EngineThread(runner, scheduler, threads=threads), runner.vocab_size)

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
        thread, runner = self._started(), self._runner
        assert runner is not None  # noqa: S101  # set before the thread
        if not isinstance(source, Mapping):
            directory = str(source)
            source = await asyncio.to_thread(
                read_weights, directory, self._config, self.tokenizer, runner.dtype
            )
            if (head := self._read_head(directory)) is not None:
                names = (f"{execute_head.PREFIX}{name}" for name in ("marker_id", "weight", "bias"))
                source = {**source, **dict(zip(names, (torch.tensor(head[0]), *head[1:]), strict=True))}
        state = source
        await asyncio.wrap_future(thread.swap_weights(lambda: runner.load_weights(state), version))

    def _read_head(self, model: str) -> tuple[int, torch.Tensor, torch.Tensor] | None:
        """Return marker id, weight and bias of the checkpoint's execute head, or None without one."""
        head = execute_head.ExecuteHead.load(Path(model))
        if head is None:
            return None
        marker_id = self.tokenizer.token_id(head.marker)
        if marker_id is None:
            raise EngineError(f"{model}: the execute head's marker {head.marker!r} is not a token")
        return marker_id, torch.tensor(head.weight), torch.tensor(head.bias)
