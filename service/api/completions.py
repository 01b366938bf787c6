"""``POST /v1/completions``: text generation without a chat template and without running code."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, Field

from service.api import sibling_fields, sse
from service.api.chat.choice_builder import MIN_LOGPROB
from service.api.chat.prepare import SHORT_CHARS
from service.api.errors import ApiError
from service.api.sampling import SamplingRequest, TokenId, end_token_ids, outside_vocabulary, sampling_of
from service.api.schemas import TEXT_COMPLETION
from service.api.sse import until_disconnect
from service.api.state import CurrentServer, EpisodeStream, Owner, Server
from service.api.validation import Ignored, only
from service.common.json import Json, JsonResponse
from service.engines.base import Sampling, TokenChunk, TopLogprob
from service.episode.accumulator import ReplyAccumulator, usage_of
from service.episode.events import EpisodeEvent, Finished, Sampled
from service.episode.runner import EpisodeRunner
from service.episode.tool_parser import TextDelta

_MAX_TOKENS = 16
"""Default of ``max_tokens``, as in OpenAI's API and vLLM."""

router = APIRouter(tags=["Completions"])


def _as_prompts(value: object) -> object:
    """Wrap a single prompt, given as text or as token ids, in a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(part) is int for part in value):
        return [value]
    return value


Prompt = str | list[TokenId]


class CompletionRequest(SamplingRequest):
    """OpenAI's fields and the extras of vLLM and llama.cpp."""

    sibling_fields: ClassVar = sibling_fields.COMPLETIONS

    model: str
    prompt: Annotated[
        list[Prompt],
        Field(min_length=1, max_length=1024),
        BeforeValidator(_as_prompts, json_schema_input_type=str | list[TokenId] | list[Prompt]),
    ]
    max_tokens: int | None = Field(default=None, ge=0)
    """Unset: 16."""
    echo: bool = False
    """Return the prompt before the completion."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Number of alternatives to report per sampled token, beside its own log-probability."""
    best_of: int | None = Field(default=None, ge=1)
    """Must equal ``n``: this server does not rank completions."""
    add_special_tokens: Annotated[object, Ignored(True)] = None
    suffix: Annotated[object, only("")] = None

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are part of the answer."""
        return self.echo and self.logprobs is not None

    @property
    def token_limit(self) -> int | None:
        limit = self.max_tokens if self.max_tokens is not None else super().token_limit
        return _MAX_TOKENS if limit is None else limit


@dataclass(frozen=True, slots=True)
class _PreparedPrompt:
    """One prompt of a request."""

    ids: list[int]
    text: str
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class PreparedCompletion:
    """A request that is ready to run."""

    id: str
    owner: str
    server: Server
    runner: EpisodeRunner
    request: CompletionRequest
    prompts: list[_PreparedPrompt]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.ids) for prompt in self.prompts)

    def choices(self) -> list[TextChoiceBuilder]:
        """Return an empty choice for each completion, grouped by prompt."""
        count = self.request.choices
        return [
            TextChoiceBuilder(index, self, prompt)
            for index, prompt in enumerate(prompt for prompt in self.prompts for _ in range(count))
        ]

    def episodes(self) -> list[EpisodeStream]:
        """Return one stream of events per choice, each with its own seed."""
        stop = list(self.request.stop or ())
        streams = []
        for prompt in self.prompts:
            for number in range(self.request.choices):
                sampling = prompt.sampling
                if sampling.seed is not None:
                    sampling = replace(sampling, seed=sampling.seed + number)
                streams.append(self.runner.complete(prompt.ids, sampling, stop=stop))
        return streams


_Score = tuple[float, Sequence[TopLogprob]]
"""Log-probability of a token, and the most likely alternatives."""


class TextChoiceBuilder:
    """Builder of one completion from the events of its generation."""

    def __init__(self, index: int, completion: PreparedCompletion, prompt: _PreparedPrompt) -> None:
        self.index = index
        runner = completion.runner
        self.reply = ReplyAccumulator(runner.engine.tokenizer, runner.endings)
        self.finish_reason: str | None = None
        self._tokenizer = runner.engine.tokenizer
        self._prompt_ids = prompt.ids if completion.request.scores_prompt else []
        """Tokens of the prompt whose log-probabilities come with the first sampled token."""
        self._drops_sampled = completion.request.token_limit == 0
        self._top = completion.request.logprobs
        self._before = prompt.text if completion.request.echo else ""
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        self._logprobs: dict[str, list[object]] = {name: [] for name in names}
        self._offset = 0 if self._prompt_ids else len(self._before)

    def begin(self) -> Json | None:
        """Return the prompt as the first delta if it is echoed without log-probabilities."""
        return self._choice(self._before) if self._before and not self._prompt_ids else None

    def add(self, event: EpisodeEvent) -> Json | None:
        """Add ``event`` and return it as a choice of a streamed chunk; None if it adds nothing."""
        text = "".join(part.text for part in self.reply.add(event) if isinstance(part, TextDelta))
        match event:
            case Sampled(chunk):
                logprobs = None
                if self._drops_sampled:
                    text = ""
                if self._prompt_ids:
                    text, logprobs = self._before + text, self._prompt_part(chunk)
                if not self._drops_sampled:
                    logprobs = _joined(logprobs, self._chunk_logprobs(chunk))
                return self._choice(text, logprobs) if text or logprobs else None
            case Finished(outcome):
                cut = outcome.is_truncated or self._drops_sampled
                return self.finish("length" if cut else "stop")
        return None

    def finish(self, reason: str) -> Json:
        """Return the last delta."""
        self.finish_reason = reason
        return self._choice("")

    def choice(self) -> Json:
        """Return the whole choice."""
        logprobs: Json | None = dict(self._logprobs) if self._top is not None else None
        return self._choice(self._before + ("" if self._drops_sampled else self.reply.text), logprobs)

    def _prompt_part(self, chunk: TokenChunk) -> Json:
        """Return the log-probabilities of the prompt. Its first token has none."""
        ids, self._prompt_ids = self._prompt_ids, []
        scores = [None, *((item.logprob, item.top_logprobs) for item in chunk.prompt_logprobs)]
        return self._add_logprobs(ids, scores)

    def _chunk_logprobs(self, chunk: TokenChunk) -> Json | None:
        """Return the log-probabilities of sampled tokens, with the one that ends the completion."""
        if self._top is None or not chunk.ids:
            return None
        tops = chunk.top_logprobs or ((),) * len(chunk.ids)
        return self._add_logprobs(chunk.ids, list(zip(chunk.logprobs, tops, strict=True)))

    def _add_logprobs(self, ids: Sequence[int], scores: Sequence[_Score | None]) -> Json:
        decode = self._tokenizer.decode
        added: dict[str, list[object]] = {name: [] for name in self._logprobs}
        for token_id, score in zip(ids, scores, strict=True):
            token = decode([token_id])
            logprob, tops = (None, None) if score is None else (max(score[0], MIN_LOGPROB), {token: score[0]})
            if score is not None and tops is not None:
                tops |= {decode([item.token_id]): item.logprob for item in score[1]}
                tops = {text: max(value, MIN_LOGPROB) for text, value in tops.items()}
            added["tokens"].append(token)
            added["token_logprobs"].append(logprob)
            added["top_logprobs"].append(tops if self._top else None if score is None else {})
            added["text_offset"].append(self._offset)
            self._offset += len(token)
        for name, values in added.items():
            self._logprobs[name] += values
        return dict(added)

    def _choice(self, text: str, logprobs: Json | None = None) -> Json:
        return {
            "index": self.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }


def _joined(one: Json | None, other: Json | None) -> Json | None:
    if one is None or other is None:
        return one or other
    return {name: [*values, *other[name]] for name, values in one.items()}  # type: ignore[misc]


@router.post("/v1/completions", response_class=JsonResponse, responses=TEXT_COMPLETION)
async def create_completion(
    body: CompletionRequest, request: Request, server: CurrentServer, owner: Owner
) -> Response:
    """Continue a text or a sequence of token ids. No code runs."""
    completion = await _prepare(server, body, owner)
    if body.stream:
        return sse.EventStream(_stream(completion), server.settings.keep_alive_s)
    return JsonResponse(await until_disconnect(request.receive, _complete(completion)))


async def _prepare(server: Server, request: CompletionRequest, owner: str) -> PreparedCompletion:
    """Prepare ``request`` to run on ``server``.

    Raises:
        ApiError: 404 for an unknown model; 400 for a field above its limit, a prompt that doesn't fit, or a
            field that the engine doesn't support.
    """
    server.check_model(request.model)
    if request.choices > server.settings.max_n:
        message = f"'n' must be at most {server.settings.max_n} on this server."
        raise ApiError(400, message, param="n", code="invalid_value")
    if request.best_of not in (None, request.choices):
        message = "'best_of': this server does not rank completions; request 'n' of them and choose."
        raise ApiError(400, message, param="best_of", code="unsupported_parameter")
    most = server.settings.max_concurrent_episodes
    if len(request.prompt) * request.choices > most:
        message = f"'prompt': at most {most} completions (prompts times 'n') can run concurrently."
        raise ApiError(400, message, param="prompt", code="invalid_value")
    prompts = []
    for index, prompt in enumerate(request.prompt):
        at = "prompt" if len(request.prompt) == 1 else f"prompt[{index}]"
        prompts.append(await _prepare_prompt(server, request, prompt, at))
    runner = replace(server.runner, end_token_ids=end_token_ids(request, server.engine))
    return PreparedCompletion(f"cmpl-{secrets.token_hex(12)}", owner, server, runner, request, prompts)


async def _prepare_prompt(
    server: Server, request: CompletionRequest, prompt: str | list[int], at: str
) -> _PreparedPrompt:
    tokenizer = server.engine.tokenizer
    if isinstance(prompt, str):
        if len(prompt) <= SHORT_CHARS:
            ids = tokenizer.encode(prompt, allow_special=True)
        else:
            ids = await asyncio.to_thread(tokenizer.encode, prompt, allow_special=True)
    else:
        ids, size = prompt, tokenizer.vocab_size
        if wrong := [place for place, token in enumerate(ids) if token >= size]:
            raise outside_vocabulary(f"{at}[{wrong[0]}]", ids[wrong[0]], size)
    if not ids:
        raise ApiError(400, f"'{at}' needs at least one token.", param=at, code="invalid_value")
    room = server.runner.room(ids, deferral=False)
    if room < 1:
        message = f"'{at}' has {len(ids)} tokens; at most {len(ids) + room - 1} fit."
        raise ApiError(400, message, param=at, code="context_length_exceeded")
    sampling = sampling_of(
        request,
        server.runner.sampling,
        room,
        server.engine,
        model=request.model,
        logprobs=request.logprobs is not None,
        top_logprobs=request.logprobs or 0,
        prompt_logprobs=request.logprobs if request.scores_prompt else None,
        structure=request.structure,
    )
    if request.token_limit == 0:  # one token is sampled and dropped
        sampling = replace(sampling, max_tokens=1)
    text = prompt if isinstance(prompt, str) else tokenizer.decode(ids) if request.echo else ""
    return _PreparedPrompt(ids, text, sampling)


async def _deltas(
    completion: PreparedCompletion, choices: list[TextChoiceBuilder]
) -> AsyncGenerator[Json, None]:
    """Run the episodes and yield the choice of each chunk, echoed prompts first."""
    for choice in choices:
        if (delta := choice.begin()) is not None:
            yield delta
    request = completion.request
    if request.token_limit == 0 and not request.scores_prompt:
        for choice in choices:
            yield choice.finish("length")
        return
    running = completion.server.run_episodes(
        completion.episodes,
        count=len(choices),
        operation="text_completion",
        model=request.model,
        owner=completion.owner,
        prompt_tokens=completion.prompt_tokens,
        attributes={"ih_grpo.request.id": completion.id, "ih_grpo.deferred": False},
        schema_param=None if request.structure is None else request.structure.param,
    )
    async with running as events:
        async for index, event in events:
            if (delta := choices[index].add(event)) is not None:
                yield delta


async def _complete(completion: PreparedCompletion) -> Json:
    choices = completion.choices()
    async with aclosing(_deltas(completion, choices)) as deltas:
        async for _ in deltas:
            pass
    return {
        **_head(completion),
        "choices": [choice.choice() for choice in choices],
        "usage": _usage(completion, choices),
    }


async def _stream(completion: PreparedCompletion) -> AsyncGenerator[bytes, None]:
    choices, head = completion.choices(), _head(completion)
    options = completion.request.stream_options
    with_usage = options is not None and options.include_usage
    async with aclosing(_deltas(completion, choices)) as deltas:
        async for delta in deltas:
            yield sse.data({**head, "choices": [delta], **({"usage": None} if with_usage else {})})
    if with_usage:
        yield sse.data({**head, "choices": [], "usage": _usage(completion, choices)})


def _head(completion: PreparedCompletion) -> Json:
    return {
        "id": completion.id,
        "object": "text_completion",
        "created": completion.created,
        "model": completion.request.model,
    }


def _usage(completion: PreparedCompletion, choices: list[TextChoiceBuilder]) -> Json:
    usage = usage_of(completion.prompt_tokens, [choice.reply for choice in choices])
    completion_tokens = 0 if completion.request.token_limit == 0 else usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": usage.prompt_tokens + completion_tokens,
    }
