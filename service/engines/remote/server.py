"""One vLLM server: what it serves, whether it is well, and a stream from it.

vLLM's answer to a streamed ``/v1/completions``, event by event.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx

from service.engines.base import EngineError, FinishReason, InvalidRequestError
from service.engines.remote.settings import RemoteSettings
from service.engines.token_stream import Piece, top_logprobs

_TOKEN = "token_id:"  # noqa: S105  # how ``return_tokens_as_token_ids`` spells a token


REFUSED: Final = (400, 422)
"""Statuses, in the head or in an event, of what the client asked for in vain."""


class StreamError(Exception):
    """The stream is not what vLLM sends to the end of a call."""


async def read_pieces(lines: AsyncIterator[str], top: int) -> AsyncGenerator[Piece, None]:
    """The tokens in server-sent ``lines``; ``top`` alternatives a token were asked for.

    The last piece waits for the usage that follows it, which says how much of the prompt was cached.

    Raises:
        InvalidRequestError: the server does not take the request.
        StreamError: the server reports an error, says what can't be read, or ends before its last token.
    """
    last: Piece | None = None
    async for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            break
        event = _parse(data)
        if last is not None:
            last = replace(last, cached_tokens=_cached(event))
        for choice in event["choices"]:
            piece = _piece(choice, top)
            if piece.finish_reason is not None:
                last = piece
            elif piece.ids:
                yield piece
    if last is None:
        raise StreamError("the stream ended before its last token")
    yield last


def _parse(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise StreamError(f"an event is no JSON: {data[:200]!r}") from None
    if not isinstance(event, dict) or "choices" not in event:
        error = event.get("error", event) if isinstance(event, dict) else event
        message = str(error.get("message", error) if isinstance(error, dict) else error)[:1000]
        if isinstance(error, dict) and error.get("code") in REFUSED:
            raise InvalidRequestError(f"vLLM: {message}")
        raise StreamError(message)
    return event


def _piece(choice: dict[str, Any], top: int) -> Piece:
    if (ids := choice.get("token_ids")) is None:
        raise StreamError("there are no token_ids in its answer: it needs vLLM 0.11 or newer")
    finish_reason: FinishReason | None = choice.get("finish_reason")
    if finish_reason not in (None, "stop", "length"):
        raise StreamError(f"it ended the request: {finish_reason}")
    logprobs = choice.get("logprobs")
    if logprobs is None:
        return Piece(ids, finish_reason=finish_reason)
    entries = logprobs["top_logprobs"] if top else ()
    tops = tuple(
        top_logprobs({int(token.removeprefix(_TOKEN)): logprob for token, logprob in entry.items()}, top)
        for entry in entries
    )
    return Piece(ids, logprobs["token_logprobs"], tops, finish_reason=finish_reason)


def _cached(event: dict[str, Any]) -> int | None:
    """None unless the server was started with ``--enable-prompt-tokens-details``."""
    details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
    cached: int | None = details.get("cached_tokens")
    return cached


class ServerError(EngineError):
    """The server could not serve a call that another may: it is away, broken or overloaded."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server says that it serves."""

    model: str
    adapters: tuple[str, ...]
    context_length: int | None


class Server:
    """A connection pool to one server. ``is_up`` is what the last look at it said; ``is_known``, whether it
    has shown that it serves what the others do."""

    def __init__(self, url: str, settings: RemoteSettings) -> None:
        self.url = url
        self.is_up = False
        self.is_known = False
        key = settings.api_key
        timeout = httpx.Timeout(settings.token_timeout_s, connect=settings.connect_timeout_s, pool=None)
        self._look = httpx.Timeout(settings.connect_timeout_s)
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"},
            timeout=timeout,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,  # a proxy between this service and its own servers is no one's intention
        )

    async def look(self) -> bool:
        """Ask for its health; the answer is kept in ``is_up``."""
        try:
            response = await self._client.get("/health", timeout=self._look)
            self.is_up = response.is_success
        except httpx.HTTPError:
            self.is_up = False
        return self.is_up

    async def offer(self) -> Offer:
        """What it serves: the first model without a parent, and the LoRA adapters on top of it.

        Raises:
            ServerError: it can't be reached, or is no vLLM server.
        """
        answer = await self._json("GET", "/v1/models")
        try:
            cards = answer["data"]
            base = next(card for card in cards if card.get("parent") is None)
            adapters = tuple(card["id"] for card in cards if card.get("parent") == base["id"])
            return Offer(base["id"], adapters, base.get("max_model_len"))
        except (KeyError, TypeError, StopIteration):
            raise ServerError(f"{self.url}: /v1/models lists no model: is it a vLLM server?") from None

    async def tokenize(self, model: str, text: str) -> list[int]:
        """Token ids of ``text`` by the server's own tokenizer."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        answer = await self._json("POST", "/tokenize", json=body)
        ids: list[int] = answer["tokens"]
        return ids

    async def complete(self, body: dict[str, Any], top: int) -> AsyncGenerator[Piece, None]:
        """Stream ``/v1/completions``. Closing it closes the connection, and vLLM stops sampling.

        Raises:
            ServerError: another server may do better.
            EngineError: the request itself was refused.
        """
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if not response.is_success:
                    await response.aread()
                    raise _refusal(self.url, response)
                pieces = read_pieces(response.aiter_lines(), top)
                async with aclosing(pieces):
                    async for piece in pieces:
                        yield piece
        except httpx.HTTPError as error:
            if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
                self.is_up = False  # until the next look
            raise ServerError(f"{self.url}: {_words(error)}") from error
        except StreamError as error:
            raise ServerError(f"{self.url}: {error}") from None

    async def close(self) -> None:
        self.is_up = False
        await self._client.aclose()

    async def _json(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = await self._client.request(method, path, timeout=self._look, **options)
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url}: {_words(error)}") from error
        if not response.is_success:
            raise _refusal(self.url, response)
        try:
            return response.json()
        except ValueError:
            raise ServerError(f"{self.url}{path}: the answer is no JSON: is it a vLLM server?") from None


def _refusal(url: str, response: httpx.Response) -> EngineError:
    status = response.status_code
    try:
        answer = response.json()
        message = str(answer.get("error", answer).get("message", response.text))
    except (ValueError, AttributeError):
        message = response.text
    if status in REFUSED:  # the client's own doing, so it is told without the server's address
        return InvalidRequestError(f"vLLM: {message[:500]}")
    message = f"{url} answered {status}: {message[:500]}"
    if status in (401, 403):
        return EngineError(f"{message}. Set engine_api_key to the key that it asks for")
    # Too busy or broken is its own trouble; any other refusal would be the same elsewhere.
    return ServerError(message) if status in (408, 429) or status >= 500 else EngineError(message)


def _words(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
