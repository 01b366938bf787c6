"""Prepare a validated chat request: prompt, sampling, and the policy within the operator's limits."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from service.api.chat.request import ChatRequest
from service.api.errors import ApiError
from service.api.files.containers import ContainerUse
from service.api.sampling import end_token_ids, sampling_of
from service.api.state import EpisodeStream, Server
from service.api.tools.choice import ForcedCall, force_call
from service.api.tools.definitions import Functions
from service.deferral.code_request import asks_for_code
from service.deferral.observation import OBSERVATION_SIGNS
from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import TokenIds
from service.deferral.scanner import FENCE
from service.engines.base import EngineError, Sampling, Tokenizer
from service.episode.accumulator import ReplyAccumulator
from service.episode.reasoning_parser import THINK_CLOSE, ReasoningParser, opens_thought
from service.episode.runner import EpisodeRunner
from service.episode.tool_parser import CALL_CLOSE, ToolCallParser

SHORT_CHARS: Final = 4000
"""Longest request that is tokenized on the event loop, in characters. It takes a millisecond or two, less
than the switch to a thread; a prompt of megabytes takes a second and goes to a thread."""


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A chat request that is ready to run."""

    id: str
    server: Server
    runner: EpisodeRunner
    """The server's runner, with the tokens that end this reply."""
    request: ChatRequest
    prompt_ids: list[int]
    prompt_end: str
    """The last characters of the rendered prompt."""
    prefix: str
    """Beginning of the reply that was written for the model. The prompt ends with it."""
    sampling: Sampling
    policy: DeferralPolicy
    code_is_answer: bool
    """The request asks for code, so the server runs none on its own initiative."""
    container: ContainerUse | None = None
    """Container that lives across requests; None for one of each episode."""

    @property
    def schema_param(self) -> str | None:
        """Request field that the JSON schema of the sampling comes from."""
        if self.sampling.json_schema is None:
            return None
        return "tools" if self.request.json_schema is None else "response_format"

    def reply(self, *, strict_calls: bool, hidden_marker: str | None = None) -> ReplyAccumulator:
        """Return an accumulator for one reply; see `ReplyAccumulator`."""
        functions = [tool.function for tool in self.request.callable_tools]
        check = Functions(functions).check if functions else None
        return ReplyAccumulator(
            self.runner.engine.tokenizer,
            self.runner.endings,
            prefix=self.prefix,
            reasoning=ReasoningParser(self.prompt_end),
            tools=None if check is None else ToolCallParser(check, strict=strict_calls),
            hidden_marker=hidden_marker,
        )

    def episodes(self) -> list[EpisodeStream]:
        """Return one stream of events per choice, each with its own seed."""
        return [self._episode(index) for index in range(self.request.choices)]

    def _episode(self, index: int) -> EpisodeStream:
        runner, request, sampling = self.runner, self.request, self.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index)
        stops = list(request.stop or ())
        if not request.deferred:
            if request.callable_tools and request.parallel_tool_calls is False:
                stops.append(CALL_CLOSE)
            return runner.complete(self.prompt_ids, sampling, stop=stops)
        return runner.run(
            runner.start(self.prompt_ids, self.policy, code_is_answer=self.code_is_answer),
            sampling,
            episode_id=f"exec_{self.id.removeprefix('chatcmpl-')}_{index}",
            eager=request.deferral.eager is not False,
            prewarm=True,
            stop=stops,
            open_session=None if self.container is None else self.container.session,
        )

    def held_container(self) -> AbstractAsyncContextManager[None]:
        """Return the context in which the request holds its container. Raises as `ContainerUse.acquire`."""
        return nullcontext() if self.container is None else self.container.acquire(self.id)


async def prepare(
    server: Server,
    request: ChatRequest,
    proven: Mapping[int, Sequence[int]] | None = None,
    container: ContainerUse | None = None,
) -> PreparedChat:
    """Prepare ``request`` to run on ``server``.

    Args:
        server: the running server.
        request: the request as it was sent.
        proven: token ids of the messages that are replies of this server, by index; see
            `service.store.replies`. All other messages are encoded as plain text.
        container: the request's container, if it lives across requests. The prompt lists its files.

    Raises:
        ApiError: 404 for an unknown model; 400 for a field above its limit, a prompt that doesn't fit, or a
            field that the engine doesn't support.
    """
    server.check_model(request.model)
    if request.choices > server.settings.max_n:
        raise _above("n", server.settings.max_n)
    if (conflict := request.conflict) is not None:
        param, why = conflict
        raise ApiError(400, f"'{param}': {why}.", param=param, code="unsupported_parameter")
    policy = _policy(server, request)
    forced = force_call(request.tool_choice, request.callable_tools) if request.forces_call else None
    note = "" if container is None else container.note
    prompt_ids = await render_prompt(server, request, proven, note)
    prompt_end = server.engine.tokenizer.decode(prompt_ids[-8:])
    if opens_thought(prompt_end) and (forced is not None or request.json_schema is not None):
        param = "tool_choice" if forced is not None else "response_format"
        message = f"'{param}': this model always thinks first, so the form of its reply can't be enforced."
        raise ApiError(400, message, param=param, code="unsupported_parameter")
    if forced is not None:
        prompt_ids = prompt_ids + server.engine.tokenizer.encode(forced.prefix, allow_special=True)
    room = server.runner.room(prompt_ids, deferral=request.deferred)
    if room < 1:
        message = f"The prompt has {len(prompt_ids)} tokens; at most {len(prompt_ids) + room - 1} fit."
        raise ApiError(400, message, param="messages", code="context_length_exceeded")
    if request.min_tokens and request.deferred:
        message = "'min_tokens': not supported for replies that run code; set deferral.enabled to false."
        raise ApiError(400, message, param="min_tokens", code="unsupported_parameter")
    sampling = sampling_of(
        request,
        server.runner.sampling,
        room,
        server.engine,
        model=request.model,
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        json_schema=request.json_schema,
    )
    return PreparedChat(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        server=server,
        runner=replace(server.runner, end_token_ids=end_token_ids(request, server.engine)),
        request=request,
        prompt_ids=prompt_ids,
        prompt_end=prompt_end,
        prefix="" if forced is None else forced.prefix,
        sampling=_constrained(sampling, forced, server),
        policy=policy,
        code_is_answer=policy.unflushed == "run" and _code_is_answer(request),
        container=container,
    )


def _constrained(sampling: Sampling, forced: ForcedCall | None, server: Server) -> Sampling:
    if forced is None or forced.schema is None or "json_schema" not in server.engine.capabilities:
        return sampling
    return replace(sampling, json_schema=forced.schema)


def _policy(server: Server, request: ChatRequest) -> DeferralPolicy:
    """Return the checkpoint's policy with the client's options, up to the operator's limits."""
    own, options = server.runner.policy, request.deferral
    changed: dict[str, object] = {}
    for name in ("max_turns", "run_limit_s", "max_output_tokens"):
        default, asked = getattr(own, name), getattr(options, name)
        ceiling = getattr(server.settings, name) or default
        if asked is not None and asked > ceiling:
            raise _above(f"deferral.{name}", ceiling)
        changed[name] = asked or min(default, ceiling)
    if options.max_output_tokens is not None:  # the cut by characters comes first and must leave enough
        changed["max_output_chars"] = max(own.max_output_chars, 8 * options.max_output_tokens)
    if options.unflushed is not None:
        changed["unflushed"] = options.unflushed
    return own.model_copy(update=changed)


def _code_is_answer(request: ChatRequest) -> bool:
    """Return whether the last user message asks for code, so code in the reply is meant to be read."""
    last = max((i for i, message in enumerate(request.messages) if message.role == "user"), default=None)
    if last is None:
        return False
    before = (request.messages[last - 1].content or "") if last else ""
    showed_code = FENCE in before and not any(sign in before for sign in OBSERVATION_SIGNS)
    return asks_for_code(request.messages[last].content or "", after_code=showed_code)


def _is_current(ids: Sequence[int], content: str, tokenizer: Tokenizer) -> bool:
    """Return whether stored ids decode to ``content``; they don't after a change of the model."""
    if not all(0 <= token < tokenizer.vocab_size for token in ids):
        return False
    return tokenizer.decode(ids).strip() == content.rpartition(THINK_CLOSE)[2].strip()


async def render_prompt(
    server: Server, request: ChatRequest, proven: Mapping[int, Sequence[int]] | None = None, note: str = ""
) -> list[int]:
    """Return the prompt ids of ``request``; for ``proven`` see `prepare`.

    ``note`` is appended to the last user message.

    Raises:
        ApiError: 400 if the chat template rejects the messages.
    """
    turns = [message.as_turn() for message in request.messages]
    for index, ids in (proven or {}).items():
        if _is_current(ids, request.messages[index].content or "", server.engine.tokenizer):
            turns[index]["content"] = [TokenIds(tuple(ids))]
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if note and last is not None:
        turns[last]["content"] = f"{turns[last]['content']}{note}"
    tools = [tool.model_dump(exclude_none=True) for tool in request.callable_tools]
    render = partial(
        server.runner.render,
        turns,
        deferral=request.deferred,
        thinking=request.thinks,
        tools=tools,
        continue_final=bool(request.continue_final_message),
    )
    size = sum(len(str(part)) for fields in (*turns, *tools) for part in fields.values())
    try:
        return render() if size <= SHORT_CHARS else await asyncio.to_thread(render)
    except (ValueError, EngineError) as error:
        raise ApiError(400, f"'messages': {error}", param="messages", code="invalid_value") from None


def _above(param: str, ceiling: float) -> ApiError:
    return ApiError(
        400, f"'{param}' must be at most {ceiling} on this server.", param=param, code="invalid_value"
    )
