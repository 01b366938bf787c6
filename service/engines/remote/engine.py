"""The remote engine: samples on one or more vLLM servers.

`Balancer` picks the server that has the episode's prefix cached, else the least busy one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

import structlog

from service.engines.base import (
    OPTIONAL_SAMPLING,
    EngineError,
    EngineStats,
    PromptLogprob,
    Sampling,
    TokenChunk,
    check_call,
)
from service.engines.execute_head import reject_execute_head
from service.engines.model_config import CheckpointEngine
from service.engines.remote.server import RemoteServer, ServedModel, ServerError
from service.engines.settings import RemoteSettings
from service.engines.token_stream import EngineCounters, SampledTokens, to_chunks
from service.engines.vllm.request import logprobs_are_exact, request_fields

_BLOCK: Final = 16
"""Prefixes are compared in blocks of this many tokens, as in vLLM's cache."""


class Balancer:
    """Load balancing with affinity: remembers which server sampled which context. Servers are numbered.

    A prompt belongs to a server if it contains text that this server sampled. Episodes therefore stay on
    their server, while new prompts are distributed even if they share a prefix.
    """

    def __init__(self, servers: int, *, max_imbalance: int, memory: int = 65_536) -> None:
        self.running = [0] * servers
        self._max_imbalance = max_imbalance
        self._memory = memory
        self._places: OrderedDict[int, int] = OrderedDict()
        self._turn = 0

    def choose(self, prompt_ids: Sequence[int], among: Collection[int]) -> int:
        """Return one of ``among``, which must not be empty."""
        least = min(self.running[server] for server in among)
        home = self._home(prompt_ids)
        if home in among and self.running[home] - least <= self._max_imbalance:
            return home
        idle = sorted(server for server in among if self.running[server] == least)
        self._turn += 1
        return idle[self._turn % len(idle)]

    def remember(self, server: int, prompt_ids: Sequence[int], sampled: Sequence[int]) -> None:
        """Record that ``server`` sampled ``sampled`` after the prompt: prompts that continue it belong to
        this server."""
        tokens = [*prompt_ids, *sampled]
        whole = len(tokens) // _BLOCK
        if whole * _BLOCK <= len(prompt_ids):
            return  # too few sampled tokens to identify this context
        key = _keys(tokens)[-1]
        self._places[key] = server
        self._places.move_to_end(key)
        if len(self._places) > self._memory:
            self._places.popitem(last=False)

    def _home(self, prompt_ids: Sequence[int]) -> int:
        for key in reversed(_keys(prompt_ids)):
            if (server := self._places.get(key)) is not None:
                return server
        return -1


def _keys(tokens: Sequence[int]) -> list[int]:
    """Return one hash per prefix of whole blocks, shortest first. Hashes of integers are deterministic."""
    keys, key = [], 0
    for start in range(0, len(tokens) - _BLOCK + 1, _BLOCK):
        key = hash((key, *tokens[start : start + _BLOCK]))
        keys.append(key)
    return keys


log = structlog.get_logger(__name__)

_PROBE = "x = 3 * 7\n<tool_call>Ünïcode 42"
"""Text that the tokenizers of different models encode differently."""


class RemoteEngine(CheckpointEngine):
    """Implements ``service.engines.base.Engine`` on vLLM servers, by token ids over ``/v1/completions``.

    An episode stays on the server that has its prefix cached; new episodes go to the least busy one. A call
    that fails before its first token is retried on another server; after the first token, the error is
    raised. The engine keeps no state that other replicas of this service would need.

    The constructor reads the tokenizer; ``start`` asks the servers for their models.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        super().__init__(settings.model, settings.model_name, settings.max_context)
        reject_execute_head(settings.model, "vLLM")
        self._settings = settings
        self._servers = [RemoteServer(url, settings) for url in settings.urls]
        self._balancer = Balancer(len(self._servers), max_imbalance=settings.max_imbalance)
        self._counters = EngineCounters()
        self._served: ServedModel | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def context_length(self) -> int:
        limits = (super().context_length, self._served and self._served.context_length)
        return min(limit for limit in limits if limit)

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset(OPTIONAL_SAMPLING)

    def supports_logprobs(self, sampling: Sampling) -> bool:
        """See `logprobs_are_exact`, with the servers' ``logprobs_mode``."""
        return logprobs_are_exact(sampling, self._settings.logprobs_mode)

    @property
    def adapters(self) -> tuple[str, ...]:
        """LoRA adapters that all servers have."""
        return () if self._served is None else self._served.adapters

    @property
    def healthy(self) -> bool:
        """Whether the engine has started and at least one server is healthy."""
        return self._served is not None and any(server.is_up for server in self._servers)

    async def start(self) -> None:
        """Ask every server for its model. Servers that are down are retried in the background.

        Raises:
            EngineError: no server answers, or they serve different models.
        """
        if self._watch is not None:
            raise EngineError("the engine was already started: create a new one")
        models = await asyncio.gather(*(self._inspect(server) for server in self._servers))
        if not (known := [served for served in models if isinstance(served, ServedModel)]):
            raise EngineError("no vLLM server answers: " + "; ".join(map(str, models)))
        self._served = _common(known)
        for server, served in zip(self._servers, models, strict=True):
            server.is_known = server.is_up = isinstance(served, ServedModel)
            if not server.is_up:
                log.warning("engine_server_away", error=str(served))
        self._watch = asyncio.create_task(self._watch_servers())

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await asyncio.gather(*(server.close() for server in self._servers))

    def stats(self) -> EngineStats:
        return self._counters.stats()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``. Only ``stop_token_ids`` end the reply: include ``eos_token_ids``."""
        if self._served is None:
            raise EngineError("the engine is not started: await start() first")
        check_call(self, prompt_ids, sampling, self._files.vocab_size)
        room = self.context_length - len(prompt_ids)
        body = {
            **request_fields(
                sampling, max_tokens=min(sampling.max_tokens, room), stop_token_ids=stop_token_ids
            ),
            "model": sampling.adapter or self._served.model,
            "prompt": list(prompt_ids),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        tokens = self._stream_tokens(prompt_ids, body, sampling.top_logprobs)
        stream = to_chunks(tokens, self._files.detokenizer(), self._counters, len(prompt_ids))
        async with aclosing(stream):
            async for chunk in stream:
                yield chunk

    async def _stream_tokens(
        self, prompt_ids: Sequence[int], body: dict[str, Any], top: int
    ) -> AsyncGenerator[SampledTokens, None]:
        tried: set[int] = set()
        for attempt in range(1, self._settings.attempts + 1):
            number = self._balancer.choose(prompt_ids, self._candidates(tried))
            tried.add(number)
            sampled: list[int] = []
            self._balancer.running[number] += 1
            server = self._servers[number]
            try:
                prompt: tuple[PromptLogprob, ...] = ()
                if (wanted := body.get("prompt_logprobs")) is not None:
                    prompt = await server.prompt_logprobs(body, wanted)
                tokens = server.complete(
                    {name: value for name, value in body.items() if name != "prompt_logprobs"}, top
                )
                async with aclosing(tokens):
                    async for part in tokens:
                        if not sampled:
                            part.prompt_logprobs = prompt
                        sampled += part.ids
                        yield part
                return
            except ServerError as error:
                if sampled or attempt == self._settings.attempts:
                    raise
                log.warning("engine_call_retried", error=str(error), attempt=attempt)
            finally:
                self._balancer.running[number] -= 1
                if sampled:
                    self._balancer.remember(number, prompt_ids, sampled)

    def _candidates(self, tried: set[int]) -> list[int]:
        """Healthy servers that were not tried yet; if there are none, any known server, since it may have
        recovered."""
        numbers = [number for number, server in enumerate(self._servers) if server.is_known]
        up = [number for number in numbers if self._servers[number].is_up]
        for choice in ([n for n in up if n not in tried], up, [n for n in numbers if n not in tried]):
            if choice:
                return choice
        return numbers

    async def _inspect(self, server: RemoteServer) -> ServedModel | ServerError:
        try:
            served = await server.served_model()
            ids = await server.tokenize(served.model, _PROBE)
        except ServerError as error:
            return error
        if ids != self.tokenizer.encode(_PROBE, allow_special=True):
            raise EngineError(
                f"{server.url} serves {served.model!r}, whose tokenizer differs from that of "
                f"{self._settings.model!r}: set model to the checkpoint it serves"
            )
        return served

    async def _watch_servers(self) -> None:
        while True:
            await asyncio.sleep(self._settings.health_interval_s)
            before = [server.is_up for server in self._servers]
            await asyncio.gather(*(self._check(server) for server in self._servers))
            for server, was_up in zip(self._servers, before, strict=True):
                if server.is_up != was_up:
                    log.warning("engine_server_up" if server.is_up else "engine_server_down", url=server.url)

    async def _check(self, server: RemoteServer) -> None:
        if server.is_known:
            await server.check_health()
            return
        served: ServedModel | EngineError
        try:  # the server was down at the start
            served = await self._inspect(server)
        except EngineError as error:
            served = error
        wanted = self._served
        if isinstance(served, ServedModel) and wanted is not None:
            if served.model == wanted.model and set(wanted.adapters) <= set(served.adapters):
                server.is_known = server.is_up = True
                return
            served = EngineError(f"{server.url} serves {served.model!r}, or lacks an adapter")
        if not isinstance(served, ServerError):
            log.error("engine_server_refused", error=str(served))


def _common(served_models: Sequence[ServedModel]) -> ServedModel:
    """The model and adapters that all servers have in common.

    Raises:
        EngineError: the servers have different models.
    """
    models = sorted({served.model for served in served_models})
    if len(models) > 1:
        raise EngineError(f"the vLLM servers serve different models: {', '.join(models)}")
    adapters = [
        name for name in served_models[0].adapters if all(name in served.adapters for served in served_models)
    ]
    lengths = [served.context_length for served in served_models if served.context_length is not None]
    return ServedModel(models[0], tuple(adapters), min(lengths, default=None))
