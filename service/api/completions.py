"""``POST /v1/completions``: plain text generation, without a chat template and without running code."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, Field

from service.api import sse
from service.api.chat.prepare import SHORT
from service.api.errors import ApiError
from service.api.output import LEAST
from service.api.run import run_episodes
from service.api.sampling import SamplingRequest, TokenId, outside_vocabulary, sampling_of, with_endings
from service.api.schemas import TEXT_COMPLETION
from service.api.sse import until_disconnect
from service.api.state import CurrentServer, Server
from service.api.tools.definitions import ResponseFormat
from service.api.validation import Ignored, only
from service.common.json import Json, JsonResponse
from service.engines.base import Sampling, TokenChunk
from service.episode.events import EpisodeEvent, Finished, Sampled
from service.episode.runner import Backend
from service.episode.stop_strings import StopStringHit, reply_endings

_MAX_TOKENS = 16
"""Where the client gives no limit, as at OpenAI and vLLM."""

router = APIRouter(tags=["Completions"])


def _as_prompts(value: object) -> object:
    """One prompt, as text or as token ids, as a list of one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(part) is int for part in value):
        return [value]
    return value


Prompt = str | list[TokenId]


class CompletionRequest(SamplingRequest):
    """OpenAI's fields and the extras of vLLM and llama.cpp."""

    model: str
    prompt: Annotated[
        list[Prompt],
        Field(min_length=1, max_length=1024),
        BeforeValidator(_as_prompts, json_schema_input_type=str | list[TokenId] | list[Prompt]),
    ]
    max_tokens: int | None = Field(default=None, ge=0)
    """Unset: 16."""
    echo: bool = False
    """Put the prompt before the completion."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Report log-probabilities of the sampled tokens, and of so many alternatives to each."""
    best_of: int | None = Field(default=None, ge=1)
    """Accepted if it equals ``n``: this server does not rank completions."""
    response_format: ResponseFormat | None = None
    add_special_tokens: Annotated[object, Ignored(True)] = None
    suffix: Annotated[object, only("")] = None

    @property
    def token_limit(self) -> int | None:
        limit = self.max_tokens if self.max_tokens is not None else super().token_limit
        return _MAX_TOKENS if limit is None else limit

    @property
    def json_schema(self) -> str | None:
        """JSON schema of each completion, as text, if the client gave one."""
        return None if self.response_format is None else self.response_format.schema_text


@dataclass(frozen=True, slots=True)
class _Part:
    """One prompt of a request."""

    ids: list[int]
    text: str
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that may run."""

    id: str
    server: Server
    backend: Backend
    request: CompletionRequest
    parts: list[_Part]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def prompt_tokens(self) -> int:
        return sum(len(part.ids) for part in self.parts)

    def choices(self) -> list[_Choice]:
        """An empty choice for each completion; those of one prompt stand together."""
        count = self.request.choices
        return [
            _Choice(index, self, part)
            for index, part in enumerate(part for part in self.parts for _ in range(count))
        ]

    def streams(self) -> list[AsyncGenerator[EpisodeEvent, None]]:
        """One stream of events a choice, each with a seed of its own."""
        stops = list(self.request.stop or ())
        found = []
        for part in self.parts:
            for number in range(self.request.choices):
                sampling = part.sampling
                if sampling.seed is not None:
                    sampling = replace(sampling, seed=sampling.seed + number)
                found.append(self.backend.plain(part.ids, sampling, stops=stops))
        return found


class _Choice:
    """One completion, grown from the events of its generation."""

    def __init__(self, index: int, job: _Job, part: _Part) -> None:
        self.index = index
        self.sampled_tokens = 0
        self.finish_reason: str | None = None
        self._engine = job.backend.engine
        self._endings = reply_endings(job.backend.engine)
        self._top = job.request.logprobs
        self._before = part.text if job.request.echo else ""
        self._text = ""
        self._logprobs: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        self._offset = len(self._before)

    def begin(self) -> Json | None:
        """The prompt, where it is to be echoed."""
        return self._delta(self._before) if self._before else None

    def take(self, event: EpisodeEvent) -> Json | None:
        """What ``event`` adds, as a choice of a chunk; None if nothing."""
        match event:
            case Sampled(chunk):
                return self._sampled(chunk)
            case StopStringHit(ids):
                self.sampled_tokens += len(ids)
            case Finished(outcome):
                return self.finish("length" if outcome.is_truncated else "stop")
        return None

    def finish(self, reason: str) -> Json:
        """The last of a stream's choices."""
        self.finish_reason = reason
        return self._delta("")

    def whole(self) -> Json:
        """The choice of a reply that is not streamed."""
        logprobs = self._logprobs if self._top is not None else None
        return self._choice(self._before + self._text, logprobs)

    def _sampled(self, chunk: TokenChunk) -> Json | None:
        ids, text = chunk.ids, chunk.text
        self.sampled_tokens += len(ids)
        if ids and (ending := self._endings.get(ids[-1])) is not None:  # counted, but no part of the text
            ids, text = ids[:-1], text.removesuffix(ending)
        self._text += text
        logprobs = self._read_logprobs(chunk, len(ids))
        return self._delta(text, logprobs) if text or logprobs else None

    def _read_logprobs(self, chunk: TokenChunk, count: int) -> Json | None:
        if self._top is None or not count:
            return None
        decode = self._engine.tokenizer.decode
        tokens = [decode([token]) for token in chunk.ids[:count]]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        tops = [
            {decode([item.token_id]): max(item.logprob, LEAST) for item in chunk.top_logprobs[at]}
            for at in range(count if chunk.top_logprobs else 0)
        ]
        added: Json = {
            "tokens": tokens,
            "token_logprobs": [max(logprob, LEAST) for logprob in chunk.logprobs[:count]],
            "top_logprobs": tops or [{}] * count,
            "text_offset": offsets,
        }
        for name, values in added.items():
            self._logprobs[name] += values  # type: ignore[operator]
        return added

    def _delta(self, text: str, logprobs: Json | None = None) -> Json:
        return self._choice(text, logprobs)

    def _choice(self, text: str, logprobs: Json | None) -> Json:
        return {
            "index": self.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }


@router.post("/v1/completions", response_class=JsonResponse, responses=TEXT_COMPLETION)
async def create_completion(body: CompletionRequest, request: Request, server: CurrentServer) -> Response:
    """Continue a text, or a sequence of token ids. No code is run."""
    job = await _prepare(server, body)
    if body.stream:
        return sse.EventStream(_stream(job), server.settings.keep_alive_s)
    return JsonResponse(await until_disconnect(request.receive, _complete(job)))


async def _prepare(server: Server, request: CompletionRequest) -> _Job:
    """The job for ``request``.

    Raises:
        ApiError: 404 for an unknown model; 400 for what is too much, does not fit, or can't be honoured.
    """
    server.check_model(request.model)
    if request.choices > server.settings.max_n:
        message = f"'n' is at most {server.settings.max_n} here."
        raise ApiError(400, message, param="n", code="invalid_value")
    if request.best_of not in (None, request.choices):
        message = "'best_of': this server does not rank completions; ask for 'n' of them and choose."
        raise ApiError(400, message, param="best_of", code="unsupported_parameter")
    if request.echo and request.logprobs is not None:
        message = "'logprobs': this server does not report log-probabilities of the prompt; leave out 'echo'."
        raise ApiError(400, message, param="logprobs", code="unsupported_parameter")
    most = server.settings.max_concurrent_episodes
    if len(request.prompt) * request.choices > most:
        message = f"'prompt': at most {most} completions run at once here, prompts times 'n'."
        raise ApiError(400, message, param="prompt", code="invalid_value")
    parts = []
    for index, prompt in enumerate(request.prompt):
        at = "prompt" if len(request.prompt) == 1 else f"prompt[{index}]"
        parts.append(await _part(server, request, prompt, at))
    engine = with_endings(server.backend.engine, request)
    backend = replace(server.backend, engine=engine)
    return _Job(f"cmpl-{secrets.token_hex(12)}", server, backend, request, parts)


async def _part(server: Server, request: CompletionRequest, prompt: str | list[int], at: str) -> _Part:
    backend = server.backend
    tokenizer = backend.engine.tokenizer
    if isinstance(prompt, str):
        if len(prompt) <= SHORT:
            ids = tokenizer.encode(prompt, allow_special=True)
        else:
            ids = await asyncio.to_thread(tokenizer.encode, prompt, allow_special=True)
    else:
        ids, size = prompt, tokenizer.vocab_size
        if wrong := [place for place, token in enumerate(ids) if token >= size]:
            raise outside_vocabulary(f"{at}[{wrong[0]}]", ids[wrong[0]], size)
    if not ids:
        raise ApiError(400, f"'{at}' needs at least one token.", param=at, code="invalid_value")
    room = backend.room(ids, deferral=False)
    if room < 1:
        message = f"'{at}' has {len(ids)} tokens; at most {len(ids) + room - 1} fit."
        raise ApiError(400, message, param=at, code="context_length_exceeded")
    sampling = sampling_of(
        request,
        backend.sampling,
        room,
        backend.engine,
        model=request.model,
        logprobs=request.logprobs is not None,
        top_logprobs=request.logprobs or 0,
        json_schema=request.json_schema,
    )
    text = prompt if isinstance(prompt, str) else tokenizer.decode(ids) if request.echo else ""
    return _Part(ids, text, sampling)


async def _events(job: _Job, choices: list[_Choice]) -> AsyncGenerator[Json, None]:
    """Choices of a stream's chunks, the echoed prompts first; holds the request's places while it runs."""
    for choice in choices:
        if (delta := choice.begin()) is not None:
            yield delta
    if job.request.token_limit == 0:
        for choice in choices:
            yield choice.finish("length")
        return
    running = run_episodes(
        job.server,
        job.streams,
        count=len(choices),
        operation="text_completion",
        model=job.request.model,
        prompt_tokens=job.prompt_tokens,
        attributes={"ih_grpo.request.id": job.id, "ih_grpo.deferred": False},
        schema_param=None if job.request.json_schema is None else "response_format",
    )
    async with running as events:
        async for index, event in events:
            if (delta := choices[index].take(event)) is not None:
                yield delta


async def _complete(job: _Job) -> Json:
    choices = job.choices()
    async with aclosing(_events(job, choices)) as deltas:
        async for _ in deltas:
            pass
    return {**_head(job), "choices": [choice.whole() for choice in choices], "usage": _usage(job, choices)}


async def _stream(job: _Job) -> AsyncGenerator[bytes, None]:
    choices, head = job.choices(), _head(job)
    options = job.request.stream_options
    with_usage = options is not None and options.include_usage
    async with aclosing(_events(job, choices)) as deltas:
        async for delta in deltas:
            yield sse.data({**head, "choices": [delta], **({"usage": None} if with_usage else {})})
    if with_usage:
        yield sse.data({**head, "choices": [], "usage": _usage(job, choices)})


def _head(job: _Job) -> Json:
    return {"id": job.id, "object": "text_completion", "created": job.created, "model": job.request.model}


def _usage(job: _Job, choices: list[_Choice]) -> Json:
    completion = sum(choice.sampled_tokens for choice in choices)
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": job.prompt_tokens + completion,
    }
