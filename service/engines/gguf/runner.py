"""llama.cpp behind the runner interface of the engine thread: planned work in, logits out.

Uses llama-cpp-python's bindings of llama.cpp's batch API. All sequences are in one context with a unified KV
cache: one pool of cells, in which sequences with the same prefix share its cells.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
import torch
from llama_cpp import llama_cpp as llama
from torch import Tensor

from service.common.machine import physical_cores
from service.engines.base import EngineError
from service.engines.gguf.files import GGUFFiles
from service.engines.settings import GGUFSettings
from service.engines.transformers.engine_thread import CacheFullError
from service.engines.transformers.scheduler import Request, Work

log = structlog.get_logger(__name__)

_LARGEST_PASS: Final = 512
"""Tokens per forward pass; a longer batch takes several. llama.cpp's own default."""
_NO_SLOT: Final = 1
"""Result of llama_decode if the cache is full; nothing was computed."""
_WARNING, _ERROR = 3, 4  # levels of its log


class LlamaCache:
    """The KV cache of a context: a row is one of llama.cpp's sequences."""

    def __init__(self, context: Any, rows: int) -> None:
        self._memory = llama.llama_get_memory(context)
        self._lengths = [0] * rows

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Let row ``target`` share the first ``length`` cells of row ``source``."""
        llama.llama_memory_seq_rm(self._memory, target, -1, -1)
        llama.llama_memory_seq_cp(self._memory, source, target, 0, length)
        self._lengths[target] = length

    def clear(self, slot: int | None = None) -> None:
        """Free the cells of one row, or of all rows and zero them."""
        if slot is None:
            llama.llama_memory_clear(self._memory, True)
            self._lengths = [0] * len(self._lengths)
        else:
            self.truncate(slot, 0)

    def truncate(self, row: int, length: int) -> None:
        """Free the cells of a row from position ``length`` on."""
        if self._lengths[row] > length:
            llama.llama_memory_seq_rm(self._memory, row, length, -1)
            self._lengths[row] = length

    def extend(self, row: int, length: int) -> None:
        """Record that a forward pass extended a row to ``length``."""
        self._lengths[row] = length


class LlamaRunner:
    """One model and one context. Implements ``BatchRunner`` of `service.engines.transformers.engine_thread`.

    Raises:
        EngineError: llama.cpp can't load the file, or the model has no cache from which single tokens can be
            removed (recurrent layers).
    """

    def __init__(self, settings: GGUFSettings, files: GGUFFiles) -> None:
        _capture_log()
        llama.llama_backend_init()
        self._model = _load(settings)
        if llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model):
            llama.llama_model_free(self._model)
            raise EngineError(
                f"model {settings.model!r} has recurrent layers; the GGUF engine serves attention only"
            )
        self.vocab_size: int = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._batch = _Batch(settings.prefill_chunk + settings.max_slots, settings.max_slots)
        threads = settings.threads or physical_cores()
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = files.cache_tokens, settings.max_slots, True
        params.n_batch = self._batch.capacity
        params.n_ubatch = min(self._batch.capacity, _LARGEST_PASS)
        params.n_threads = params.n_threads_batch = threads
        params.n_outputs_max_per_seq = 0  # no limit: log-probabilities of a prompt need all its logits
        params.no_perf = True
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            llama.llama_model_free(self._model)
            raise EngineError(
                f"llama.cpp can't create a context of {files.cache_tokens} tokens: {_last_error()}. Set a "
                "smaller gguf_cache_tokens"
            )
        self.cache = LlamaCache(self._context, settings.max_slots)
        self._warm_up()

    def close(self) -> None:
        """Free model and context. The runner can't be used afterwards."""
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def forward(self, plan: Sequence[Work]) -> tuple[list[Work], Tensor, list[tuple[Request, range, Tensor]]]:
        """Run one step; see ``BatchRunner.forward``."""
        batch = self._batch
        batch.clear()
        rows = 0
        sampling: list[tuple[Work, int]] = []
        scored: list[tuple[Request, range, int]] = []
        for work in plan:
            self.cache.truncate(work.slot.index, work.start)
            wanted = work.request.scored_positions(work.start, work.stop)
            if wanted:
                scored.append((work.request, wanted, rows))
                rows += len(wanted)
            if work.samples:
                sampling.append((work, rows))
                rows += 1
            tokens = work.request.tokens[work.start : work.stop]
            batch.add(tokens, work.start, work.slot.index, len(wanted), last=work.samples)
        self._decode()
        for work in plan:
            self.cache.extend(work.slot.index, work.stop)
        if rows == 0:
            return [], torch.empty(0, self.vocab_size), []
        pointer = llama.llama_get_logits(self._context)
        logits = torch.from_numpy(np.ctypeslib.as_array(pointer, (rows, self.vocab_size)))
        own = logits if not scored else logits[[row for _, row in sampling]]
        return (
            [work for work, _ in sampling],
            own,
            [(request, wanted, logits[row : row + len(wanted)]) for request, wanted, row in scored],
        )

    def _decode(self) -> None:
        """Compute the batch.

        Raises:
            CacheFullError: the cache has no room for it.
            EngineError: llama.cpp failed.
        """
        if (code := llama.llama_decode(self._context, self._batch.value())) == _NO_SLOT:
            raise CacheFullError
        if code:
            raise EngineError(f"llama.cpp failed with code {code}: {_last_error()}")

    def _warm_up(self) -> None:
        """Compute one token, so that the first request does not wait for the weights to be read."""
        self._batch.clear()
        self._batch.add([0], 0, 0, 0, last=True)
        self._decode()
        self.cache.clear()


class _Batch:
    """The arrays of a ``llama_batch``, filled for each step.

    Args:
        capacity: largest number of tokens.
        rows: number of sequences.
    """

    def __init__(self, capacity: int, rows: int) -> None:
        self.capacity = capacity
        self._size = 0
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._counts = np.ones(capacity, np.int32)
        self._sequences = np.arange(rows, dtype=np.int32)
        self._sequence_pointers = np.zeros(capacity, np.uintp)
        self._outputs = np.zeros(capacity, np.int8)

    def clear(self) -> None:
        self._size = 0

    def add(self, tokens: Sequence[int], position: int, row: int, outputs: int, *, last: bool) -> None:
        """Add consecutive tokens of one row, the first one at ``position``.

        Args:
            tokens: at least one id.
            position: position of the first one in its sequence.
            row: number of the sequence.
            outputs: number of tokens, from the first one on, whose logits are wanted.
            last: whether the logits of the last token are wanted as well.
        """
        part = slice(self._size, self._size + len(tokens))
        self._tokens[part] = tokens
        self._positions[part] = np.arange(position, position + len(tokens))
        self._sequence_pointers[part] = self._sequences.ctypes.data + row * self._sequences.itemsize
        self._outputs[part] = 0
        self._outputs[self._size : self._size + outputs] = 1
        self._size += len(tokens)
        if last:
            self._outputs[self._size - 1] = 1

    def value(self) -> Any:
        """Return the structure that llama.cpp reads; valid until the next change."""
        return llama.llama_batch(
            n_tokens=self._size,
            token=_pointer(self._tokens, llama.llama_token),
            embd=None,
            pos=_pointer(self._positions, llama.llama_pos),
            n_seq_id=_pointer(self._counts, ctypes.c_int32),
            seq_id=_pointer(self._sequence_pointers, ctypes.POINTER(llama.llama_seq_id)),
            logits=_pointer(self._outputs, ctypes.c_int8),
        )


def _pointer(array: Any, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def can_repack_weights() -> bool:
    """Return whether llama.cpp may repack weights for the CPU: not for AMX.

    GCC 12 compiles llama.cpp's set-up of AMX tiles to code that ends the process at the first multiplication
    with quantised weights: its intrinsic reads 64 bytes but declares 8. Without the repacked weights,
    llama.cpp uses AVX-512.
    """
    return b"AMX_INT8 = 1" not in llama.llama_print_system_info()


def _load(settings: GGUFSettings) -> Any:
    params = llama.llama_model_default_params()
    if settings.device == "cpu":
        params.n_gpu_layers = 0
    params.use_extra_bufts = can_repack_weights()
    model = llama.llama_model_load_from_file(str(Path(settings.model).resolve()).encode(), params)
    if not model:
        raise EngineError(f"llama.cpp can't load {settings.model}: {_last_error()}")
    return model


_errors: list[str] = []


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _record(level: int, text: bytes, _: object) -> None:
    """Log warnings and errors of llama.cpp, and keep the last error for the exception."""
    message = text.decode(errors="replace").strip()
    if level == _ERROR and message:
        _errors[:] = [message]
        log.error("llama_cpp", message=message)
    elif level == _WARNING and message:
        log.debug("llama_cpp", message=message)


def _capture_log() -> None:
    """Send llama.cpp's log, which goes to stderr by default, to ours."""
    _errors.clear()
    llama.llama_log_set(_record, ctypes.c_void_p(0))


def _last_error() -> str:
    return _errors[0] if _errors else "it gives no reason"
