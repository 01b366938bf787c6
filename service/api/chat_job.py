"""From a checked request to episodes ready to run: prompt, sampling, and the policy within its ceilings."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import TypeVar

from service.api.chat_request import ChatRequest
from service.api.errors import ApiError
from service.api.server import Server
from service.deferral.policy import DeferralPolicy
from service.engines.base import EngineError, Sampling
from service.events import EpisodeEvent

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class ChatJob:
    """A request that may run."""

    id: str
    server: Server
    request: ChatRequest
    prompt_ids: list[int]
    sampling: Sampling
    policy: DeferralPolicy

    def episodes(self) -> list[AsyncGenerator[EpisodeEvent, None]]:
        """One stream of events a choice, each with a seed of its own."""
        return [self._episode(index) for index in range(self.request.choices)]

    def _episode(self, index: int) -> AsyncGenerator[EpisodeEvent, None]:
        backend, sampling = self.server.backend, self.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index)
        if not self.request.deferral.enabled:
            return backend.plain(self.prompt_ids, sampling)
        episode_id = f"exec_{self.id.removeprefix('chatcmpl-')}_{index}"
        return backend.episode(
            self.prompt_ids, sampling, self.policy, eager=self.request.deferral.eager, episode_id=episode_id
        )


async def prepare(server: Server, request: ChatRequest) -> ChatJob:
    """The job for ``request``.

    Raises:
        ApiError: 404 for an unknown model; 400 for what is above a ceiling or does not fit.
    """
    if request.model != server.model_name:
        message = f"The model '{request.model}' does not exist. This server has '{server.model_name}'."
        raise ApiError(404, message, param="model", code="model_not_found")
    if request.choices > server.settings.max_n:
        raise _above("n", server.settings.max_n)
    policy = _policy(server, request)
    prompt_ids = await _render(server, request)
    room = server.backend.room(prompt_ids, deferral=request.deferral.enabled)
    if room < 1:
        message = f"The prompt has {len(prompt_ids)} tokens; at most {len(prompt_ids) + room - 1} fit."
        raise ApiError(400, message, param="messages", code="context_length_exceeded")
    return ChatJob(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        server=server,
        request=request,
        prompt_ids=prompt_ids,
        sampling=_sampling(server.backend.sampling, request, room),
        policy=policy,
    )


def _policy(server: Server, request: ChatRequest) -> DeferralPolicy:
    """The checkpoint's policy with what the client asks for, up to the operator's ceilings."""
    own, options, settings = server.backend.policy, request.deferral, server.settings
    max_turns, run_limit_s = settings.max_turns or own.max_turns, settings.run_limit_s or own.run_limit_s
    if options.max_turns is not None and options.max_turns > max_turns:
        raise _above("deferral.max_turns", max_turns)
    if options.run_limit_s is not None and options.run_limit_s > run_limit_s:
        raise _above("deferral.run_limit_s", run_limit_s)
    asked = {
        "max_turns": options.max_turns or min(own.max_turns, max_turns),
        "run_limit_s": options.run_limit_s or min(own.run_limit_s, run_limit_s),
    }
    return own.model_copy(update=asked)


async def _render(server: Server, request: ChatRequest) -> list[int]:
    messages: list[dict[str, object]] = [
        {"role": "system" if message.role == "developer" else message.role, "content": message.content or ""}
        for message in request.messages
    ]
    thinking = request.chat_template_kwargs.enable_thinking
    try:
        # Off the event loop: a prompt of megabytes takes a second to tokenise.
        return await asyncio.to_thread(
            server.backend.render, messages, deferral=request.deferral.enabled, thinking=thinking
        )
    except (ValueError, EngineError) as error:
        raise ApiError(400, f"'messages': {error}", param="messages", code="invalid_value") from None


def _sampling(default: Sampling, request: ChatRequest, room: int) -> Sampling:
    return Sampling(
        temperature=_given(request.temperature, default.temperature),
        top_p=_given(request.top_p, default.top_p),
        top_k=max(_given(request.top_k, default.top_k), 0),
        min_p=_given(request.min_p, default.min_p),
        seed=request.seed,
        max_tokens=min(_given(request.token_limit, room), room),
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
    )


def _given(asked: Number | None, default: Number) -> Number:
    return default if asked is None else asked


def _above(param: str, ceiling: float) -> ApiError:
    return ApiError(400, f"'{param}' is at most {ceiling} here.", param=param, code="invalid_value")
