"""``POST /v1/chat/completions``."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

from fastapi import APIRouter, Request, Response

from service.api import sse
from service.api.chat.approvals import ApprovalDecision, decide
from service.api.chat.choice_builder import ChoiceBuilder, ChoiceDelta, chat_usage
from service.api.chat.history import (
    find_replies,
    find_suspended,
    outputs_at_end,
    reply_key,
    store_reply,
    with_whole_replies,
)
from service.api.chat.prepare import prepare
from service.api.chat.request import ChatRequest
from service.api.chat.suspension import CurrentSuspensions, LiveEpisode, Suspensions
from service.api.errors import ApiError
from service.api.files.choice import CurrentContainers, container_of_request
from service.api.files.containers import Containers, ContainerUse
from service.api.files.inputs import file_part
from service.api.schemas import COMPLETION
from service.api.sse import until_disconnect
from service.api.state import CurrentReplies, CurrentServer, Owner
from service.api.telemetry.tracing import Attributes
from service.api.tools.definitions import AutoContainer, CodeInterpreterTool
from service.api.validation import report_ignored
from service.common.json import Json, JsonResponse, dumps
from service.engines.checkpoint import DEMO_WITHOUT_DEFERRAL
from service.episode.accumulator import Usage, usage_of
from service.episode.events import FlushSuspended
from service.episode.tool_parser import CallError
from service.store.replies import ReplyStore

router = APIRouter(tags=["Chat"])
_Store = Callable[[LiveEpisode, Sequence[ChoiceBuilder]], Awaitable[None]]


@router.post("/v1/chat/completions", response_class=JsonResponse, responses=COMPLETION)
async def create_chat_completion(
    body: ChatRequest,
    request: Request,
    server: CurrentServer,
    replies: CurrentReplies,
    containers: CurrentContainers,
    suspensions: CurrentSuspensions,
    owner: Owner,
) -> Response:
    """Answer a conversation. Code that the model writes runs in a sandbox when the model asks for it."""
    live = find_suspended(suspensions, body, owner)
    if live is None:
        body = with_whole_replies(body)
        container = await _container(containers, body, owner)
        chat = await prepare(server, body, await find_replies(replies, owner, body), container)
        for name in chat.ignored:
            report_ignored(name)
        live = LiveEpisode(chat, owner, "chat", waits_for_approvals=True)
    reply = _Reply(body, live, suspensions, partial(_store_choices, replies, owner))
    if body.stream:
        return sse.EventStream(_stream(reply), server.settings.keep_alive_s)
    return JsonResponse(await until_disconnect(request.receive, _complete(reply)))


@router.post("/v1/chat/completions/{completion_id}/approvals")
async def decide_call_of_completion(
    completion_id: str, body: ApprovalDecision, suspensions: CurrentSuspensions, owner: Owner
) -> Json:
    """Approve or deny a call of a tool that code in a streamed completion wants to make."""
    return decide(suspensions, completion_id, owner, body)


class _Reply:
    """One chat completion in progress.

    Args:
        request: the request.
        live: its episode, which an earlier request may have started.
        suspensions: keeps the episode if its code waits for the client.
        store: stores the token ids of a choice at its end.
    """

    def __init__(
        self, request: ChatRequest, live: LiveEpisode, suspensions: Suspensions, store: _Store
    ) -> None:
        self.request, self.live, self.chat = request, live, live.chat
        self.id = f"chatcmpl-{secrets.token_hex(12)}" if live.is_continued else live.chat.id
        self.suspensions = suspensions
        self.store = store
        self.usage: Usage | None = None
        """Set when the episode is suspended: the next request may continue it at any time."""
        self.is_continued = live.is_continued
        self.answers = outputs_at_end(request)
        self.choices = self._choices()

    def _choices(self) -> list[ChoiceBuilder]:
        chat, live = self.chat, self.live
        if live.reply is not None:
            accumulators = [live.reply]
        else:
            strict = chat.request.strict_tool_calls
            accumulators = [chat.reply(strict_calls=strict) for _ in range(chat.request.choices)]
            live.reply = accumulators[0]
        return [
            ChoiceBuilder(
                index,
                accumulator,
                chat.runner.engine.tokenizer if chat.request.logprobs else None,
                chat.request.custom_names,
                container=chat.container,
                tools=chat.code_tools,
            )
            for index, accumulator in enumerate(accumulators)
        ]

    async def suspend(self) -> None:
        """Keep the episode for the next request."""
        self.usage = self.live.usage()
        self.live.text += self.choices[0].content
        await self.suspensions.add(self.live)

    def usage_json(self) -> Json:
        """Return the token counts of this request."""
        if self.usage is not None:
            return chat_usage(self.usage)
        if self.is_continued:
            return chat_usage(self.live.usage())
        return chat_usage(usage_of(len(self.chat.prompt_ids), [choice.reply for choice in self.choices]))

    def head(self, kind: str) -> Json:
        """Return the fields that begin a completion or a chunk."""
        created, model = int(time.time()), self.chat.request.model
        return {"id": self.id, "object": kind, "created": created, "model": model}


async def _container(containers: Containers, request: ChatRequest, owner: str) -> ContainerUse | None:
    """Return the container of the request if it has files or asks for one.

    Raises:
        ApiError: 400 if files or a container can't be used here, 404 for an unknown file or container.
    """
    parts = [
        file_part(part, f"messages[{index}].{where}")
        for index, message in enumerate(request.messages)
        for where, part in message.file_parts
    ]
    choice = request.deferral.container
    choice_param = "deferral.container"
    for index, tool in enumerate(request.tools or ()):
        if choice is None and isinstance(tool, CodeInterpreterTool) and tool.container != AutoContainer():
            choice, choice_param = tool.container, f"tools[{index}].container"
    if choice is None and not parts:
        return None
    obstacle = None
    if not request.deferred:
        obstacle = "files and containers need code execution, which is off in this request."
    elif request.choices > 1:
        obstacle = "it can't be combined with 'n' above 1."
    return await container_of_request(
        containers,
        choice,
        parts,
        owner,
        param=choice_param,
        by_default=False,
        obstacle=obstacle,
        on_expired=request.deferral.on_expired,
        figures=request.deferral.figures,
    )


async def _store_choices(
    store: ReplyStore, owner: str, live: LiveEpisode, choices: Sequence[ChoiceBuilder]
) -> None:
    chat = live.chat
    for choice in choices:
        calls = choice.calls if chat.request.deferred else []
        if not choice.is_suspended and (choice.reply.executed or calls):
            key = reply_key(live.text + choice.content, calls)
            await store_reply(store, owner, key, choice.reply.ids, chat.server.engine.tokenizer)


async def _complete(reply: _Reply) -> Json:
    chat = reply.chat
    async with aclosing(_deltas(reply)) as deltas:
        async for _ in deltas:
            pass
    await reply.store(reply.live, reply.choices)
    completion: Json = {
        **reply.head("chat.completion"),
        "choices": [choice.choice() for choice in reply.choices],
        "usage": reply.usage_json(),
    }
    if chat.server.notice is not None and not chat.request.deferred:
        completion["notice"] = DEMO_WITHOUT_DEFERRAL
    if chat.container is not None and chat.container.notice is not None:
        completion["notice"] = chat.container.notice
    return completion


async def _stream(reply: _Reply) -> AsyncGenerator[bytes, None]:
    options = reply.request.stream_options
    with_usage = options is not None and options.include_usage
    head = reply.head("chat.completion.chunk") | ({"usage": None} if with_usage else {})
    start = sse.DATA + dumps({**head, "choices": []}).removesuffix(b"]}")  # the same in every chunk
    async with aclosing(_deltas(reply)) as deltas:
        async for choice, delta in deltas:
            if delta.finish_reason is not None:
                await reply.store(reply.live, [choice])  # before the client can send the reply back
            yield start + _chunk_choice(choice.index, delta) + b"]}" + sse.END
    if with_usage:
        yield sse.data({**head, "choices": [], "usage": reply.usage_json()})


def _chunk_choice(index: int, delta: ChoiceDelta) -> bytes:
    if (text := delta.only_content) is not None:  # nearly all chunks; a fifth of the encoder's time
        added = b'{"index":%d,"delta":{"content":%b}' % (index, dumps(text))
        return added + b',"logprobs":null,"finish_reason":null}'
    rest = {"logprobs": delta.logprobs, "finish_reason": delta.finish_reason}
    return dumps({"index": index, "delta": delta.delta, **rest})


async def _deltas(reply: _Reply) -> AsyncGenerator[tuple[ChoiceBuilder, ChoiceDelta], None]:
    """Run the episodes and yield the delta of each event, after a first delta with the role.

    With a JSON schema the role waits for the first event, because the engine may reject the schema.
    """
    chat, live, choices = reply.chat, reply.live, reply.choices
    running = chat.server.run_episodes(
        partial(live.streams, reply.answers, reply.id),
        count=len(choices),
        operation="chat",
        model=chat.request.model,
        owner=live.owner,
        prompt_tokens=0 if live.is_continued else len(chat.prompt_ids),
        runs_code=chat.request.deferred,
        attributes=_attributes(reply),
        schema_param=chat.schema_param,
    )
    async with live.acquired(reply.suspensions, reply.id), running as events:
        roles = [(choice, ChoiceDelta({"role": "assistant", "content": ""})) for choice in choices]
        if chat.schema_param is None:
            for role in roles:
                yield role
            roles = []
        async for index, event in events:
            for role in roles:
                yield role
            roles = []
            try:
                delta = choices[index].add(event)
            except CallError as error:
                details = {"failed_generation": error.written}
                raise ApiError(400, str(error), code="tool_use_failed", details=details) from None
            if isinstance(event, FlushSuspended):
                await reply.suspend()
            if delta is not None:
                yield choices[index], delta


def _attributes(reply: _Reply) -> Attributes:
    """Return the span's attributes that come from the client."""
    request = reply.request
    attributes = {f"ih_grpo.metadata.{name}": value for name, value in (request.metadata or {}).items()}
    if request.user is not None:
        attributes["enduser.id"] = request.user
    return {"ih_grpo.request.id": reply.id, "ih_grpo.deferred": reply.chat.request.deferred, **attributes}
