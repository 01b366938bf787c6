"""The remote engine: one or many vLLM servers behind the engine's protocol.

Which server gets a call: the one that has the episode's prefix cached, else the least busy. Pure.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

import structlog

from service.engines.base import OPTIONAL_SAMPLING, EngineError, EngineStats, Sampling, TokenChunk
from service.engines.model_config import CheckpointEngine
from service.engines.remote.server import Offer, Server, ServerError
from service.engines.remote.settings import RemoteSettings
from service.engines.token_stream import Piece, Tally, chunks
from service.engines.validation import check
from service.engines.vllm.request import request_fields, tells_logprobs

_BLOCK: Final = 16
"""Tokens between two places at which a prefix may be recognised; vLLM caches by such blocks too."""


class Balancer:
    """Remembers where contexts were sampled. Servers are numbered.

    A prompt belongs to a server if it holds text that this server sampled: so an episode goes on where it
    is, while new prompts, alike as their beginnings may be, are spread.
    """

    def __init__(self, servers: int, *, max_imbalance: int, memory: int = 65_536) -> None:
        self.running = [0] * servers
        self._max_imbalance = max_imbalance
        self._memory = memory
        self._places: OrderedDict[int, int] = OrderedDict()
        self._turn = 0

    def choose(self, prompt_ids: Sequence[int], among: Collection[int]) -> int:
        """One of ``among``, which is not empty."""
        least = min(self.running[server] for server in among)
        home = self._home(prompt_ids)
        if home in among and self.running[home] - least <= self._max_imbalance:
            return home
        idle = sorted(server for server in among if self.running[server] == least)
        self._turn += 1
        return idle[self._turn % len(idle)]

    def remember(self, server: int, prompt_ids: Sequence[int], sampled: Sequence[int]) -> None:
        """``server`` has sampled ``sampled`` after the prompt; what goes on from there belongs to it."""
        tokens = [*prompt_ids, *sampled]
        whole = len(tokens) // _BLOCK
        if whole * _BLOCK <= len(prompt_ids):
            return  # too few were sampled to tell this context from others
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
    """One hash for each prefix of whole blocks, shortest first. Integers hash alike every time."""
    keys, key = [], 0
    for start in range(0, len(tokens) - _BLOCK + 1, _BLOCK):
        key = hash((key, *tokens[start : start + _BLOCK]))
        keys.append(key)
    return keys


log = structlog.get_logger(__name__)

_PROBE = "x = 3 * 7\n<tool_call>Ünïcode 42"
"""Text that tokenizers of different models cut differently."""


class RemoteEngine(CheckpointEngine):
    """Implements ``service.engines.base.Engine`` on vLLM servers, by token ids over ``/v1/completions``.

    An episode stays on the server that has its prefix cached; new ones go to the least busy. A call that
    fails before its first token is tried on another server; after it, it fails. Nothing is kept here that
    another replica would miss.

    The constructor reads the tokenizer; ``start`` asks the servers what they serve.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        super().__init__(settings.model, settings.model_name, settings.max_context)
        self._settings = settings
        self._servers = [Server(url, settings) for url in settings.urls]
        self._balancer = Balancer(len(self._servers), max_imbalance=settings.max_imbalance)
        self._tally = Tally()
        self._offer: Offer | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def context_length(self) -> int:
        limits = (super().context_length, self._offer and self._offer.context_length)
        return min(limit for limit in limits if limit)

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset(OPTIONAL_SAMPLING)

    def supports_logprobs(self, sampling: Sampling) -> bool:
        """As `tells_logprobs` says for the servers' ``logprobs_mode``."""
        return tells_logprobs(sampling, self._settings.logprobs_mode)

    @property
    def adapters(self) -> tuple[str, ...]:
        """LoRA adapters that every server has."""
        return () if self._offer is None else self._offer.adapters

    @property
    def healthy(self) -> bool:
        """Started, and at least one server is well."""
        return self._offer is not None and any(server.is_up for server in self._servers)

    async def start(self) -> None:
        """Ask every server what it serves. Those that are away are waited for in the background.

        Raises:
            EngineError: none answers, or they don't serve one and the same model.
        """
        if self._watch is not None:
            raise EngineError("the engine was started before: make a new one")
        offers = await asyncio.gather(*(self._first_look(server) for server in self._servers))
        if not (known := [offer for offer in offers if isinstance(offer, Offer)]):
            raise EngineError("no vLLM server answers: " + "; ".join(map(str, offers)))
        self._offer = _common(known)
        for server, offer in zip(self._servers, offers, strict=True):
            server.is_known = server.is_up = isinstance(offer, Offer)
            if not server.is_up:
                log.warning("engine_server_away", error=str(offer))
        self._watch = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await asyncio.gather(*(server.close() for server in self._servers))

    def stats(self) -> EngineStats:
        return self._tally.stats()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``. Only ``stop_token_ids`` stop: pass ``eos_token_ids`` among them."""
        if self._offer is None:
            raise EngineError("the engine is not started: await start() first")
        check(self, prompt_ids, sampling, self._files.vocab_size)
        room = self.context_length - len(prompt_ids)
        body = {
            **request_fields(
                sampling, max_tokens=min(sampling.max_tokens, room), stop_token_ids=stop_token_ids
            ),
            "model": sampling.adapter or self._offer.model,
            "prompt": list(prompt_ids),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        pieces = self._pieces(prompt_ids, body, sampling.top_logprobs)
        stream = chunks(pieces, self._files.detokenizer(), self._tally, len(prompt_ids))
        async with aclosing(stream):
            async for chunk in stream:
                yield chunk

    async def _pieces(
        self, prompt_ids: Sequence[int], body: dict[str, Any], top: int
    ) -> AsyncGenerator[Piece, None]:
        tried: set[int] = set()
        for attempt in range(1, self._settings.attempts + 1):
            number = self._balancer.choose(prompt_ids, self._candidates(tried))
            tried.add(number)
            sampled: list[int] = []
            self._balancer.running[number] += 1
            pieces = self._servers[number].complete(body, top)
            try:
                async with aclosing(pieces):
                    async for piece in pieces:
                        sampled += piece.ids
                        yield piece
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
        """Servers that are well and not tried yet; where there is none, any known one: it may be back."""
        numbers = [number for number, server in enumerate(self._servers) if server.is_known]
        up = [number for number in numbers if self._servers[number].is_up]
        for choice in ([n for n in up if n not in tried], up, [n for n in numbers if n not in tried]):
            if choice:
                return choice
        return numbers

    async def _first_look(self, server: Server) -> Offer | ServerError:
        try:
            offer = await server.offer()
            ids = await server.tokenize(offer.model, _PROBE)
        except ServerError as error:
            return error
        if ids != self.tokenizer.encode(_PROBE, allow_special=True):
            raise EngineError(
                f"{server.url} serves {offer.model!r}, whose tokenizer is not that of "
                f"{self._settings.model!r}: name the checkpoint that it serves"
            )
        return offer

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._settings.health_interval_s)
            before = [server.is_up for server in self._servers]
            await asyncio.gather(*(self._look(server) for server in self._servers))
            for server, was_up in zip(self._servers, before, strict=True):
                if server.is_up != was_up:
                    log.warning("engine_server_up" if server.is_up else "engine_server_down", url=server.url)

    async def _look(self, server: Server) -> None:
        if server.is_known:
            await server.look()
            return
        offer: Offer | EngineError
        try:  # it was away at the start
            offer = await self._first_look(server)
        except EngineError as error:
            offer = error
        wanted = self._offer
        if isinstance(offer, Offer) and wanted is not None:
            if offer.model == wanted.model and set(wanted.adapters) <= set(offer.adapters):
                server.is_known = server.is_up = True
                return
            offer = EngineError(f"{server.url} serves {offer.model!r}, or lacks an adapter")
        if not isinstance(offer, ServerError):
            log.error("engine_server_refused", error=str(offer))


def _common(offers: Sequence[Offer]) -> Offer:
    """What all servers serve.

    Raises:
        EngineError: their models differ.
    """
    models = sorted({offer.model for offer in offers})
    if len(models) > 1:
        raise EngineError(f"the vLLM servers serve different models: {', '.join(models)}")
    adapters = [name for name in offers[0].adapters if all(name in offer.adapters for offer in offers)]
    lengths = [offer.context_length for offer in offers if offer.context_length is not None]
    return Offer(models[0], tuple(adapters), min(lengths, default=None))
