"""From a checked request to episodes ready to run: prompt, sampling, and the policy within its ceilings."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from service.api.chat.request import ChatRequest
from service.api.errors import ApiError
from service.api.reasoning_parser import CLOSE as CLOSE_THOUGHT
from service.api.reasoning_parser import OPEN
from service.api.sampling import sampling_of, with_endings
from service.api.state import Server
from service.api.tools.choice import ForcedCall, forced_call
from service.api.tools.parser import CLOSE
from service.deferral.code_request import asks_for_code
from service.deferral.fences import FENCE
from service.deferral.observation import OBSERVATION_SIGNS
from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import TokenIds
from service.engines.base import EngineError, Sampling, Tokenizer
from service.episode.events import EpisodeEvent
from service.episode.runner import Backend

SHORT: Final = 4000
"""Characters of a request that are tokenised at once, in a millisecond or two: a thread would take longer to
get its turn. A prompt of megabytes takes a second and must not hold the event loop."""


@dataclass(frozen=True, slots=True)
class ChatJob:
    """A request that may run."""

    id: str
    server: Server
    backend: Backend
    """The server's, with the tokens that end this reply."""
    request: ChatRequest
    prompt_ids: list[int]
    prompt_end: str
    """The last characters of the rendered prompt."""
    prefix: str
    """The beginning of the reply, which was written for the model; it ends the prompt."""
    sampling: Sampling
    policy: DeferralPolicy
    code_is_answer: bool
    """The request asks for code, so the server runs none by its own decision."""

    @property
    def thinks(self) -> bool:
        """A thought may come first."""
        return self.request.thinks or _opens_thought(self.prompt_end)

    @property
    def schema_param(self) -> str | None:
        """The request's field that the JSON schema of the sampling comes from."""
        if self.sampling.json_schema is None:
            return None
        return "tools" if self.request.json_schema is None else "response_format"

    def episodes(self) -> list[AsyncGenerator[EpisodeEvent, None]]:
        """One stream of events a choice, each with a seed of its own."""
        return [self._episode(index) for index in range(self.request.choices)]

    def _episode(self, index: int) -> AsyncGenerator[EpisodeEvent, None]:
        backend, request, sampling = self.backend, self.request, self.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index)
        stops = list(request.stop or ())
        if not request.deferred:
            if request.callable_tools and request.parallel_tool_calls is False:
                stops.append(CLOSE)
            return backend.plain(self.prompt_ids, sampling, stops=stops)
        return backend.episode(
            self.prompt_ids,
            sampling,
            self.policy,
            eager=request.deferral.eager is not False,
            episode_id=f"exec_{self.id.removeprefix('chatcmpl-')}_{index}",
            stops=stops,
            code_is_answer=self.code_is_answer,
        )


async def prepare(
    server: Server, request: ChatRequest, proven: Mapping[int, Sequence[int]] | None = None
) -> ChatJob:
    """Return the job for ``request``.

    Args:
        server: runs it.
        request: as it was sent.
        proven: ids of the messages that are replies of this server, by their index; see `replies`. Anything
            else in the conversation is encoded as plain text.

    Raises:
        ApiError: 404 for an unknown model; 400 for what is too much, does not fit, or can't be honoured.
    """
    server.check_model(request.model)
    if request.choices > server.settings.max_n:
        raise _above("n", server.settings.max_n)
    if (conflict := request.conflict) is not None:
        param, why = conflict
        raise ApiError(400, f"'{param}': {why}.", param=param, code="unsupported_parameter")
    policy = _policy(server, request)
    forced = forced_call(request.tool_choice, request.callable_tools)
    prompt_ids = await render_prompt(server, request, proven)
    prompt_end = server.backend.engine.tokenizer.decode(prompt_ids[-8:])
    if _opens_thought(prompt_end) and (forced is not None or request.json_schema is not None):
        param = "tool_choice" if forced is not None else "response_format"
        message = f"'{param}': this model always thinks first, so its reply can't be held to a form."
        raise ApiError(400, message, param=param, code="unsupported_parameter")
    if forced is not None:
        prompt_ids = prompt_ids + server.backend.engine.tokenizer.encode(forced.prefix, allow_special=True)
    room = server.backend.room(prompt_ids, deferral=request.deferred)
    if room < 1:
        message = f"The prompt has {len(prompt_ids)} tokens; at most {len(prompt_ids) + room - 1} fit."
        raise ApiError(400, message, param="messages", code="context_length_exceeded")
    if request.min_tokens and request.deferred:
        message = (
            "'min_tokens': where code runs, replies can't be kept from ending; set deferral.enabled to false."
        )
        raise ApiError(400, message, param="min_tokens", code="unsupported_parameter")
    sampling = sampling_of(
        request,
        server.backend.sampling,
        room,
        server.backend.engine,
        model=request.model,
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        json_schema=request.json_schema,
    )
    return ChatJob(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        server=server,
        backend=replace(server.backend, engine=with_endings(server.backend.engine, request)),
        request=request,
        prompt_ids=prompt_ids,
        prompt_end=prompt_end,
        prefix="" if forced is None else forced.prefix,
        sampling=_held_to(sampling, forced, server),
        policy=policy,
        code_is_answer=policy.unflushed == "run" and _code_is_answer(request),
    )


def _opens_thought(prompt_end: str) -> bool:
    """Whether the template has begun a thought for the model, as those of models that always think do."""
    return prompt_end.rstrip().endswith(OPEN)


def _held_to(sampling: Sampling, forced: ForcedCall | None, server: Server) -> Sampling:
    if forced is None or forced.schema is None or "json_schema" not in server.backend.engine.capabilities:
        return sampling
    return replace(sampling, json_schema=forced.schema)


def _policy(server: Server, request: ChatRequest) -> DeferralPolicy:
    """Return the checkpoint's policy with what the client asks for, up to the operator's ceilings."""
    own, options = server.backend.policy, request.deferral
    changed: dict[str, object] = {}
    for name in ("max_turns", "run_limit_s", "max_output_tokens"):
        default, asked = getattr(own, name), getattr(options, name)
        ceiling = getattr(server.settings, name) or default
        if asked is not None and asked > ceiling:
            raise _above(f"deferral.{name}", ceiling)
        changed[name] = asked or min(default, ceiling)
    if options.max_output_tokens is not None:  # characters are cut first, so they must leave room
        changed["max_output_chars"] = max(own.max_output_chars, 8 * options.max_output_tokens)
    if options.unflushed is not None:
        changed["unflushed"] = options.unflushed
    return own.model_copy(update=changed)


def _code_is_answer(request: ChatRequest) -> bool:
    """Whether the last user message asks for code, so that code in the reply is to be read and not run."""
    last = max((i for i, message in enumerate(request.messages) if message.role == "user"), default=None)
    if last is None:
        return False
    before = (request.messages[last - 1].content or "") if last else ""
    showed_code = FENCE in before and not any(sign in before for sign in OBSERVATION_SIGNS)
    return asks_for_code(request.messages[last].content or "", after_code=showed_code)


def _is_current(ids: Sequence[int], content: str, tokenizer: Tokenizer) -> bool:
    """Whether stored ids are those of ``content`` in this vocabulary: another model may have been served
    since."""
    if not all(0 <= token < tokenizer.vocab_size for token in ids):
        return False
    return tokenizer.decode(ids).strip() == content.rpartition(CLOSE_THOUGHT)[2].strip()


async def render_prompt(
    server: Server, request: ChatRequest, proven: Mapping[int, Sequence[int]] | None = None
) -> list[int]:
    """Return the prompt ids of ``request``; for ``proven`` see `prepare`.

    Raises:
        ApiError: 400, the chat template can't take the messages.
    """
    turns = [message.as_turn() for message in request.messages]
    for index, ids in (proven or {}).items():
        if _is_current(ids, request.messages[index].content or "", server.backend.engine.tokenizer):
            turns[index]["content"] = [TokenIds(tuple(ids))]
    tools = [tool.model_dump(exclude_none=True) for tool in request.callable_tools]
    render = partial(
        server.backend.render,
        turns,
        deferral=request.deferred,
        thinking=request.thinks,
        tools=tools,
        continue_final=bool(request.continue_final_message),
    )
    size = sum(len(str(part)) for fields in (*turns, *tools) for part in fields.values())
    try:
        return render() if size <= SHORT else await asyncio.to_thread(render)
    except (ValueError, EngineError) as error:
        raise ApiError(400, f"'messages': {error}", param="messages", code="invalid_value") from None


def _above(param: str, ceiling: float) -> ApiError:
    return ApiError(400, f"'{param}' is at most {ceiling} here.", param=param, code="invalid_value")
