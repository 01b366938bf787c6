"""Prepare a validated chat request: prompt, sampling, and the policy within the operator's limits."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from service.api.chat.request import ChatRequest, DeferralOptions
from service.api.errors import ApiError
from service.api.files.containers import ContainerUse
from service.api.sampling import end_token_ids, sampling_of
from service.api.state import EpisodeStream, Server
from service.api.tools.choice import ForcedCall, force_call
from service.api.tools.definitions import Functions
from service.api.tools.history import is_current
from service.api.tools.mcp import open_tools
from service.deferral.call_span import CALL_CLOSE
from service.deferral.code_request import asks_for_code
from service.deferral.observation import OBSERVATION_SIGNS
from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import TokenIds, last_request
from service.deferral.scanner import FENCE
from service.engines.base import EngineError, Sampling
from service.episode.accumulator import ReplyAccumulator
from service.episode.reasoning_parser import ReasoningParser, opens_thought
from service.episode.runner import EpisodeRunner
from service.episode.thought_limit import ThoughtLimit, supports_thought_limit
from service.episode.tool_parser import ToolCallParser
from service.tools.mcp.hub import SessionTools

SHORT_CHARS: Final = 4000
"""Longest request that is tokenized on the event loop, in characters. It takes a millisecond or two, less
than the switch to a thread; a prompt of megabytes takes a second and goes to a thread."""


_QUOTED_CHARS: Final = 4000
"""Longest JSON schema that is shown to the model before its final answer."""


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
    thinks: bool
    """The reply may begin with a thought."""
    ignored: tuple[str, ...] = ()
    """Fields of the request without effect on this model."""
    code_tools: SessionTools | None = None
    """Tools that code may call."""
    container: ContainerUse | None = None
    """Container that lives across requests; None for one of each episode."""

    @property
    def schema_param(self) -> str | None:
        """Request field that the constraint of the sampling comes from."""
        if self.sampling.structure is None:
            return None
        return "tools" if self.request.constraint is None else self.request.constraint.param

    def reply(self, *, strict_calls: bool, hidden_marker: str | None = None) -> ReplyAccumulator:
        """Return an accumulator for one reply; see `ReplyAccumulator`."""
        functions = [tool.function for tool in self.request.callable_tools]
        tools: ToolCallParser | None = None
        if functions:
            check = Functions(functions).check
            tools = ToolCallParser(check, strict=strict_calls, marked=self.request.deferred)
        return ReplyAccumulator(
            self.runner.engine.tokenizer,
            self.runner.endings,
            prefix=self.prefix,
            reasoning=ReasoningParser(self.prompt_end),
            tools=tools,
            hidden_marker=hidden_marker,
            separate_answer=self._answer_lead is not None,
        )

    async def close(self) -> None:
        """Close the connections to tools."""
        if self.code_tools is not None:
            await self.code_tools.close()

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
            return runner.complete(
                self.prompt_ids,
                sampling,
                stop=stops,
                thought=self._thought_limit(),
                answer=self._answer_lead,
            )
        return runner.run(
            runner.start(
                self.prompt_ids,
                self.policy,
                code_is_answer=self.code_is_answer,
                functions=[tool.function.name for tool in request.callable_tools],
                parallel_calls=request.parallel_tool_calls is not False,
            ),
            sampling,
            episode_id=f"exec_{self.id.removeprefix('chatcmpl-')}_{index}",
            eager=request.deferral.eager is not False,
            prewarm=True,
            stop=stops,
            thought=self._thought_limit(),
            answer=self._answer_lead,
            tools=self.code_tools,
            tool_wait_s=self.server.settings.tool_wait_s,
            approvals=None if self.code_tools is None else self.code_tools.approvals,
            open_session=None if self.container is None else self.container.session,
            live_output=bool(request.stream and request.deferral.live_output),
        )

    @asynccontextmanager
    async def held_container(self) -> AsyncGenerator[None, None]:
        """Hold the container of the request in the context. Raises as `ContainerUse.acquire`."""
        async with AsyncExitStack() as stack:
            if self.container is not None:
                try:
                    await stack.enter_async_context(self.container.acquire(self.id))
                except BaseException:  # the episodes, which would close the connections, never start
                    await self.close()
                    raise
            yield

    def _thought_limit(self) -> ThoughtLimit | None:
        """Return the limit of a choice's thought; None if there is nothing to limit."""
        tokenizer, tokens = self.runner.engine.tokenizer, self.request.thinking_tokens
        is_constrained = self.request.constraint is not None and self._answer_lead is None
        is_needed = tokens is not None or is_constrained
        if not (self.thinks and is_needed and supports_thought_limit(tokenizer)):
            return None
        return ThoughtLimit(tokenizer, self.prompt_end, tokens)

    @property
    def _answer_lead(self) -> str | None:
        """Text before a constrained answer that follows a turn with code or without a function call; None if
        there is no such answer."""
        structure = self.request.constraint
        if structure is None or not (self.request.deferred or self.request.callable_tools):
            return None
        if structure.kind == "json_schema" and len(structure.text) <= _QUOTED_CHARS:
            return f"\n\nThe final answer as JSON that matches the schema {structure.text}:\n"
        return "\n\nThe final answer is:\n"


async def prepare(
    server: Server,
    request: ChatRequest,
    proven: Mapping[int, Sequence[int]] | None = None,
    container: ContainerUse | None = None,
) -> PreparedChat:
    """Prepare ``request`` to run on ``server``, and connect to its MCP servers.

    Raises:
        ApiError: as `prepare_with`; 400 or 424 for an MCP server that can't be used.
    """
    server.check_model(request.model)
    if (conflict := request.conflict) is not None:
        param, why = conflict
        raise ApiError(400, f"'{param}': {why}.", param=param, code="unsupported_parameter")
    functions = request.code_functions
    wants_tools = request.deferred and (request.mcp_tools or functions or server.mcp.always)
    tools = await open_tools(server.mcp, request.mcp_tools, functions) if wants_tools else None
    try:
        return await prepare_with(server, request, tools, proven, container)
    except BaseException:
        if tools is not None:
            await tools.close()
        raise


async def prepare_with(
    server: Server,
    request: ChatRequest,
    tools: SessionTools | None,
    proven: Mapping[int, Sequence[int]] | None = None,
    container: ContainerUse | None = None,
) -> PreparedChat:
    """Prepare ``request`` to run on ``server`` with ``tools`` for its code.

    Args:
        server: the running server.
        request: the request as it was sent.
        tools: tools that code may call. The caller closes them if this fails.
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
    policy = effective_policy(server, request.deferral)
    forced = force_call(request.tool_choice, request.callable_tools) if request.forces_call else None
    note = "" if container is None else container.note
    prompt_ids = await render_prompt(server, request, proven, tools, note)
    prompt_end = server.engine.tokenizer.decode(prompt_ids[-8:])
    thinks = _thinks(server, request) or opens_thought(prompt_end)
    _check_thought(server, request, prompt_end, thinks=thinks)
    if forced is not None:
        prompt_ids = prompt_ids + server.engine.tokenizer.encode(forced.prefix, allow_special=True)
    room = server.runner.room(prompt_ids, deferral=request.deferred)
    if room < 1:
        message = f"The prompt has {len(prompt_ids)} tokens; at most {len(prompt_ids) + room - 1} fit."
        raise ApiError(400, message, param="messages", code="context_length_exceeded")
    sampling = sampling_of(
        request,
        server.runner.sampling,
        room,
        server.engine,
        model=request.model,
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        structure=request.constraint,
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
        thinks=thinks,
        ignored=tuple(_ignored(server, request, thinks=thinks)),
        code_tools=tools,
        container=container,
    )


def _thinks(server: Server, request: ChatRequest) -> bool:
    """Return whether the prompt asks the model to think first.

    An effort has no effect if the checkpoint was trained without thinking, or if the reply's form is fixed
    and the end of a thought can't be found.
    """
    if request.explicit_thinking is not None or not request.thinks:
        return request.thinks
    if request.deferred:
        return server.runner.policy.thinking
    return request.constraint is None or supports_thought_limit(server.engine.tokenizer)


def _ignored(server: Server, request: ChatRequest, *, thinks: bool) -> Iterator[str]:
    """Yield the request's fields about thinking that have no effect on this model."""
    if request.thinks and not thinks:
        yield request.effort_param
    elif (request.explicit_budget or 0) > 0 and not (
        thinks and supports_thought_limit(server.engine.tokenizer)
    ):
        yield "thinking_budget"


def _check_thought(server: Server, request: ChatRequest, prompt_end: str, *, thinks: bool) -> None:
    """Raise ApiError 400 if the form of a reply can't be enforced because the model thinks first."""
    always = opens_thought(prompt_end)
    if request.forces_call and always:
        param, why = "tool_choice", "this model always thinks first, so a call can't be forced"
    elif (
        (structure := request.constraint) is not None
        and thinks
        and not (
            request.deferred or request.callable_tools or supports_thought_limit(server.engine.tokenizer)
        )
    ):
        param, why = structure.param, "the form of the reply can't be enforced after this model's thoughts"
    else:
        return
    raise ApiError(400, f"'{param}': {why}.", param=param, code="unsupported_parameter")


def _constrained(sampling: Sampling, forced: ForcedCall | None, server: Server) -> Sampling:
    if forced is None or forced.schema is None or "json_schema" not in server.engine.capabilities:
        return sampling
    return replace(sampling, json_schema=forced.schema)


def effective_policy(server: Server, options: DeferralOptions) -> DeferralPolicy:
    """Return the checkpoint's policy with the client's options, up to the operator's limits.

    Raises:
        ApiError: 400 for an option above its limit.
    """
    own = server.runner.policy
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


async def render_prompt(
    server: Server,
    request: ChatRequest,
    proven: Mapping[int, Sequence[int]] | None = None,
    code_tools: SessionTools | None = None,
    note: str = "",
) -> list[int]:
    """Return the prompt ids of ``request``; for ``proven`` see `prepare`.

    ``note`` is appended to the last user message, or without one to the last system message.

    Raises:
        ApiError: 400 if the chat template rejects the messages.
    """
    turns = [message.as_turn() for message in request.messages]
    for index, ids in (proven or {}).items():
        message = request.messages[index]
        names = [call.function.name for call in message.tool_calls or ()]
        if is_current(ids, message.content or "", names, server.engine.tokenizer):
            turns[index]["content"] = [TokenIds(tuple(ids))]
            turns[index].pop("tool_calls", None)  # the ids contain the calls
    last = last_request(turns)
    if note and last is not None:
        turns[last]["content"] = f"{turns[last]['content']}{note}"
    tools: list[dict[str, object]] = [
        {
            "type": "function",
            "function": tool.function.model_dump(
                include={"name", "description", "parameters", "strict"}, exclude_none=True
            ),
        }
        for tool in request.callable_tools
    ]
    render = partial(
        server.runner.render,
        turns,
        deferral=request.runs_code,
        thinking=_thinks(server, request),
        tools=tools,
        continue_final=bool(request.continue_final_message),
        code_tools=() if code_tools is None else code_tools.specs,
    )
    try:
        size = sum(len(str(part)) for fields in (*turns, *tools) for part in fields.values())
        return render() if size <= SHORT_CHARS else await asyncio.to_thread(render)
    except (ValueError, EngineError) as error:
        raise ApiError(400, f"'messages': {error}", param="messages", code="invalid_value") from None
    except RecursionError:
        reason = "'messages': a tool or the arguments of a call are nested too deeply."
        raise ApiError(400, reason, param="messages", code="invalid_value") from None


async def count_prompt_tokens(
    server: Server,
    request: ChatRequest,
    proven: Mapping[int, Sequence[int]],
    code_tools: SessionTools | None,
) -> int:
    """Return the number of tokens of the prompt, as `prepare_with` renders it without a container.

    Closes ``code_tools``.

    Raises:
        ApiError: 400 if the chat template rejects the messages.
    """
    try:
        ids = await render_prompt(server, request, proven, code_tools)
    finally:
        if code_tools is not None:
            await code_tools.close()
    if not request.forces_call:
        return len(ids)
    prefix = force_call(request.tool_choice, request.callable_tools).prefix
    return len(ids) + len(server.engine.tokenizer.encode(prefix, allow_special=True))


def _above(param: str, ceiling: float) -> ApiError:
    return ApiError(
        400, f"'{param}' must be at most {ceiling} on this server.", param=param, code="invalid_value"
    )
