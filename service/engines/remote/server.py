"""A client of one vLLM server: its models, its health, and streamed completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx

from service.engines.base import EngineError, FinishReason, InvalidRequestError, PromptLogprob
from service.engines.settings import RemoteSettings
from service.engines.token_stream import SampledTokens, prompt_logprob, top_logprobs

_TOKEN = "token_id:"  # noqa: S105  # prefix of tokens with ``return_tokens_as_token_ids``


REFUSED: Final = (400, 422)
"""Statuses, of the response or of an error event, that report an invalid request."""


class StreamError(Exception):
    """The stream is malformed, incomplete, or reports an error."""


async def read_tokens(lines: AsyncIterator[str], top: int) -> AsyncGenerator[SampledTokens, None]:
    """Parse the tokens in server-sent ``lines``, with ``top`` alternatives per token.

    The last tokens are held back until the usage event that follows them, which has the number of cached
    tokens.

    Raises:
        InvalidRequestError: the server rejects the request.
        StreamError: the server reports an error, sends malformed data, or ends the stream early.
    """
    last: SampledTokens | None = None
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
            part = _sampled_tokens(choice, top)
            if part.finish_reason is not None:
                last = part
            elif part.ids:
                yield part
    if last is None:
        raise StreamError("the stream ended before its last token")
    yield last


def _parse(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise StreamError(f"an event is not JSON: {data[:200]!r}") from None
    if not isinstance(event, dict) or "choices" not in event:
        error = event.get("error", event) if isinstance(event, dict) else event
        message = str(error.get("message", error) if isinstance(error, dict) else error)[:1000]
        if isinstance(error, dict) and error.get("code") in REFUSED:
            raise InvalidRequestError(f"vLLM: {message}")
        raise StreamError(message)
    return event


def _sampled_tokens(choice: dict[str, Any], top: int) -> SampledTokens:
    if (ids := choice.get("token_ids")) is None:
        raise StreamError("the response has no token_ids: vLLM 0.11 or newer is required")
    finish_reason: FinishReason | None = choice.get("finish_reason")
    if finish_reason not in (None, "stop", "length"):
        raise StreamError(f"the server aborted the request: {finish_reason}")
    logprobs = choice.get("logprobs")
    if logprobs is None:
        return SampledTokens(ids, finish_reason=finish_reason)
    entries = logprobs["top_logprobs"] if top else ()
    tops = tuple(
        top_logprobs({int(token.removeprefix(_TOKEN)): logprob for token, logprob in entry.items()}, top)
        for entry in entries
    )
    return SampledTokens(ids, logprobs["token_logprobs"], tops, finish_reason=finish_reason)


def _cached(event: dict[str, Any]) -> int | None:
    """Number of cached prompt tokens; None unless the server runs with ``--enable-prompt-tokens-details``."""
    details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
    cached: int | None = details.get("cached_tokens")
    return cached


class ServerError(EngineError):
    """The server is down, broken or overloaded; another server may succeed."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model and adapters that a server reports."""

    model: str
    adapters: tuple[str, ...]
    context_length: int | None


class RemoteServer:
    """A connection pool to one server.

    ``is_up`` is the result of the last health check. ``is_known`` is true once the server's model was
    compared with the other servers'."""

    def __init__(self, url: str, settings: RemoteSettings) -> None:
        self.url = url
        self.is_up = False
        self.is_known = False
        key = settings.api_key
        timeout = httpx.Timeout(settings.token_timeout_s, connect=settings.connect_timeout_s, pool=None)
        self._probe_timeout = httpx.Timeout(settings.connect_timeout_s)
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"},
            timeout=timeout,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,  # no proxy between this service and its own servers
        )

    async def check_health(self) -> bool:
        """Check the server's health and store the result in ``is_up``."""
        try:
            response = await self._client.get("/health", timeout=self._probe_timeout)
            self.is_up = response.is_success
        except httpx.HTTPError:
            self.is_up = False
        return self.is_up

    async def served_model(self) -> ServedModel:
        """Ask for the served model: the first model without a parent, and its LoRA adapters.

        Raises:
            ServerError: the server can't be reached, or is not a vLLM server.
        """
        answer = await self._json("GET", "/v1/models")
        try:
            cards = answer["data"]
            base = next(card for card in cards if card.get("parent") is None)
            adapters = tuple(card["id"] for card in cards if card.get("parent") == base["id"])
            return ServedModel(base["id"], adapters, base.get("max_model_len"))
        except (KeyError, TypeError, StopIteration):
            raise ServerError(f"{self.url}: /v1/models lists no model: is it a vLLM server?") from None

    async def tokenize(self, model: str, text: str) -> list[int]:
        """Token ids of ``text`` by the server's own tokenizer."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        answer = await self._json("POST", "/tokenize", json=body)
        ids: list[int] = answer["tokens"]
        return ids

    async def complete(self, body: dict[str, Any], top: int) -> AsyncGenerator[SampledTokens, None]:
        """Stream ``/v1/completions``. Closing the generator closes the connection, which stops sampling.

        Raises:
            ServerError: the call failed; another server may succeed.
            EngineError: the server rejected the request.
        """
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if not response.is_success:
                    await response.aread()
                    raise _error(self.url, response)
                tokens = read_tokens(response.aiter_lines(), top)
                async with aclosing(tokens):
                    async for part in tokens:
                        yield part
        except httpx.HTTPError as error:
            if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
                self.is_up = False  # until the next health check
            raise ServerError(f"{self.url}: {_words(error)}") from error
        except StreamError as error:
            raise ServerError(f"{self.url}: {error}") from None

    async def prompt_logprobs(self, body: dict[str, Any], top: int) -> tuple[PromptLogprob, ...]:
        """Ask for the log-probabilities of a prompt's tokens from the second one on.

        Args:
            body: a request of ``/v1/completions``. vLLM reports them only without ``stream``.
            top: number of alternatives.

        Raises:
            ServerError: the call failed; another server may succeed.
            EngineError: the server rejected the request.
        """
        unstreamed = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
        answer = await self._json(
            "POST",
            "/v1/completions",
            timeout=self._client.timeout,
            json={**unstreamed, "max_tokens": 1, "min_tokens": 0, "structured_outputs": None},
        )
        entries = answer["choices"][0].get("prompt_logprobs")
        if entries is None:
            raise EngineError(f"{self.url} reports no log-probabilities of prompts")
        return tuple(
            prompt_logprob({int(number): item["logprob"] for number, item in entry.items()}, token_id, top)
            for token_id, entry in zip(body["prompt"][1:], entries[1:], strict=True)
        )

    async def close(self) -> None:
        self.is_up = False
        await self._client.aclose()

    async def _json(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = await self._client.request(method, path, **{"timeout": self._probe_timeout, **options})
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url}: {_words(error)}") from error
        if not response.is_success:
            raise _error(self.url, response)
        try:
            return response.json()
        except ValueError:
            raise ServerError(f"{self.url}{path}: the response is not JSON: is it a vLLM server?") from None


def _error(url: str, response: httpx.Response) -> EngineError:
    status = response.status_code
    try:
        answer = response.json()
        message = str(answer.get("error", answer).get("message", response.text))
    except (ValueError, AttributeError):
        message = response.text
    if status in REFUSED:  # the client's error, reported without the server's address
        return InvalidRequestError(f"vLLM: {message[:500]}")
    message = f"{url} answered {status}: {message[:500]}"
    if status in (401, 403):
        return EngineError(f"{message}. Set engine_api_key to the server's key")
    # Overload and failures are specific to this server; other errors would be the same on any server.
    return ServerError(message) if status in (408, 429) or status >= 500 else EngineError(message)


def _words(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
