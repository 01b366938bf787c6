"""Backends of an evaluation: an engine and sandbox in this process, or any OpenAI-compatible server."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from service.deferral.episode import Outcome
from service.engines.base import Engine
from service.episode.events import ExecutedTool, Finished, Sampled
from service.episode.runner import EpisodeRunner
from service.sandbox.base import Sandbox
from service.tools.base import ToolHost
from trainer.rewards.protocol import FinishedEpisode
from trainer.training.episodes import RolloutSettings, sample_episode

PLAIN_INSTRUCTION: Final = (
    "Solve the problem below step by step. Put the final answer in \\boxed{}.\n\nProblem: "
)
"""Text before each problem in episodes without Python."""


class BackendError(Exception):
    """An episode failed for a reason other than the model; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class ToolUsage:
    """Tool usage of an episode; see ``trainer.evaluation.results.EvalResult`` for the fields."""

    flushes: int
    executed: int
    executed_by_model: int
    delayed: int
    calls: int
    errors: int
    seconds: float
    hidden_seconds: float


@dataclass(frozen=True, slots=True)
class Solution:
    """The data of a finished episode that an evaluation uses."""

    text: str
    finish: Literal["stop", "length", "too_long"]
    """See ``trainer.evaluation.results.EvalResult``."""
    tokens: int
    seconds: float
    tools: ToolUsage | None
    """None for a server that runs no code or does not report it."""
    outcome: Outcome | None = None
    """None if the backend does not report it."""
    executed_tools: tuple[ExecutedTool, ...] | None = None
    """The flushes; None from servers."""
    tool_wait_seconds: float | None = None
    """Time that the model waited for running code."""
    pending_blocks: int | None = None
    """Blocks that were closed and never ran."""
    open_fence: bool | None = None
    """Whether the response ends inside an unclosed Python block."""

    def finished(self) -> FinishedEpisode:
        """Return the episode as reward functions see it."""
        return FinishedEpisode(
            text=self.text,
            outcome=self.outcome,
            tokens=self.tokens,
            seconds=self.seconds,
            tools=self.executed_tools,
            tool_wait_seconds=self.tool_wait_seconds,
            pending_blocks=self.pending_blocks,
            open_fence=self.open_fence,
        )


Messages = Sequence[dict[str, object]]
"""A conversation whose last message is the problem."""


class EvalBackend(Protocol):
    """A backend that solves problems."""

    async def solve(self, messages: Messages, seed: int) -> Solution:
        """Run one episode.

        Raises:
            BackendError, EngineError: the episode failed for a reason other than the model.
        """
        ...


class LocalBackend:
    """Backend with an engine and a sandbox of this process, both started. Uses the serving loop.

    Args:
        engine: started.
        sandbox: started; unused without Python.
        settings: how episodes are run.
        tools: tools that code can call; started.
        python: offer Python. Otherwise the model answers in one turn, and no code runs.
        thinking: let the model think first.
    """

    def __init__(
        self,
        engine: Engine,
        sandbox: Sandbox,
        settings: RolloutSettings,
        *,
        tools: ToolHost | None = None,
        python: bool = True,
        thinking: bool = False,
    ) -> None:
        self._runner = EpisodeRunner(engine, sandbox, settings.policy, settings.sampling)
        self._eager = settings.eager
        self._tools = tools
        self._python = python
        self._thinking = thinking

    async def solve(self, messages: Messages, seed: int) -> Solution:
        if not self._python:
            return await self._complete(messages, seed)
        code_tools = () if self._tools is None else self._tools.specs
        prompt = self._runner.render(messages, deferral=True, thinking=self._thinking, code_tools=code_tools)
        sample = await sample_episode(
            self._runner, prompt, seed=seed, episode_id=f"e{seed}", eager=self._eager, tools=self._tools
        )
        if sample.sandbox_failed:
            raise BackendError("the sandbox failed during an episode")
        finish: Literal["stop", "length", "too_long"] = "length" if sample.outcome.is_truncated else "stop"
        return Solution(
            text=sample.text,
            finish=finish if sample.ids else "too_long",
            tokens=sum(sample.sampled),
            seconds=sample.seconds,
            tools=ToolUsage(
                flushes=len(sample.tools),
                executed=sample.executed,
                executed_by_model=sample.executed_by_model,
                delayed=sample.delayed,
                calls=sum(len(tool.calls) for tool in sample.tools),
                errors=sum(tool.status != "ok" for tool in sample.tools),
                seconds=sample.tool_seconds,
                hidden_seconds=sample.hidden_seconds,
            ),
            outcome=sample.outcome,
            executed_tools=sample.tools,
            tool_wait_seconds=sample.tool_wait_seconds,
            pending_blocks=sample.pending_blocks,
            open_fence=sample.open_fence,
        )

    async def _complete(self, messages: Messages, seed: int) -> Solution:
        instructed = _with_text_before(messages, PLAIN_INSTRUCTION)
        prompt = self._runner.render(instructed, deferral=False, thinking=self._thinking)
        policy = self._runner.policy
        limit = min(policy.max_episode_tokens, self._runner.engine.context_length)
        room = min(policy.max_turn_tokens, limit - len(prompt))
        if room < 1:
            return Solution("", "too_long", 0, 0.0, None)
        began = time.monotonic()
        text: list[str] = []
        tokens = 0
        outcome = Outcome.VOID
        async for event in self._runner.complete(
            prompt, replace(self._runner.sampling, seed=seed, max_tokens=room)
        ):
            match event:
                case Sampled(chunk):
                    text.append(chunk.text)
                    tokens += len(chunk.ids)
                case Finished(ended):
                    outcome = ended
        finish: Literal["stop", "length"] = "length" if outcome == Outcome.LENGTH else "stop"
        return Solution("".join(text), finish, tokens, time.monotonic() - began, None)


def _with_text_before(messages: Messages, text: str) -> list[dict[str, object]]:
    """Return the messages with ``text`` before the last one."""
    return [*messages[:-1], {**messages[-1], "content": f"{text}{messages[-1]['content']}"}]


async def check_server(client: httpx.AsyncClient) -> None:
    """Check that the server responds and accepts the key, before many requests are sent.

    Adds ``/v1`` to the client's base URL if it is missing and the server's routes are below it.

    Raises:
        BackendError: the server does not respond, has no such routes or rejects the key.
    """
    try:
        response = await client.get("models")
        if response.status_code == 404 and not client.base_url.path.endswith("/v1/"):
            response = await client.get("v1/models")
            if response.status_code == 404:
                raise BackendError(
                    f"url: the server at {client.base_url} has no route /models (404): pass the base URL of "
                    f"an OpenAI-compatible server, with or without /v1"
                )
            client.base_url = client.base_url.join("v1/")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise BackendError(
            f"url: the server at {client.base_url} did not respond ({error or type(error).__name__}): "
            f"start it, or correct the URL"
        ) from None
    if response.status_code in (401, 403):
        raise BackendError(
            f"the server at {client.base_url} rejected the key ({response.status_code}): pass it as "
            f"--api-key or in IHGRPO_API_KEY"
        )


class ServerBackend:
    """Backend that sends ``POST {url}/chat/completions``. Retries if the server is busy or unreachable.

    Args:
        client: a client with the server's base URL (see ``check_server``), headers and timeout.
        model: the model's name on the server.
        request: more fields of each request, such as ``temperature``.
        instruction: text before each problem. `ih-grpo serve` needs none: it adds its own.
        tries: attempts for one problem, with increasing delays.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        model: str,
        request: Mapping[str, Any],
        *,
        instruction: str = "",
        tries: int = 6,
    ) -> None:
        self._client = client
        self._body = {**request, "model": model}
        self._instruction = instruction
        self._tries = tries

    async def solve(self, messages: Messages, seed: int) -> Solution:
        body = {
            **self._body,
            "seed": seed,
            "messages": _with_text_before(messages, self._instruction),
        }
        began = time.monotonic()
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(_BusyError),
                stop=stop_after_attempt(self._tries),
                wait=wait_random_exponential(multiplier=0.5, max=30),
                reraise=True,
            ):
                with attempt:
                    reply = await self._ask(body)
        except _BusyError as error:
            raise BackendError(f"{error}, {self._tries} times in a row") from None
        return _solution(reply, time.monotonic() - began)

    async def _ask(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            response = await self._client.post("chat/completions", json=body)
        except httpx.TransportError as error:
            raise _BusyError(
                f"the server at {self._client.base_url} did not respond ({type(error).__name__})"
            ) from None
        if response.status_code in (408, 409, 429) or response.status_code >= 500:
            raise _BusyError(f"the server answered {response.status_code}")
        if response.is_error:
            if _TOO_LONG.search(response.text) and not _ASKS_TOO_MUCH.search(response.text):
                return _NO_ROOM
            raise BackendError(f"{response.url} answered {response.status_code}: {_message(response)}")
        try:
            reply: Mapping[str, Any] = response.json()
        except ValueError:
            raise BackendError(
                f"{response.url} returned invalid JSON: check that it is an OpenAI-compatible server"
            ) from None
        return reply


_TOO_LONG: Final = re.compile("context_length_exceeded|maximum (context|model) length")
_ASKS_TOO_MUCH: Final = re.compile("max_tokens|max_completion_tokens|in the completion")
"""The requested token limit is too large, for every problem: the user has to fix it."""
_NO_ROOM: Final[Mapping[str, Any]] = {
    "choices": [{"finish_reason": "too_long", "message": {"content": ""}}],
}


def _message(response: httpx.Response) -> str:
    """Return the message of an error in OpenAI's format, or the start of the response."""
    try:
        return str(response.json()["error"]["message"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return response.text[:500]


class _BusyError(Exception):
    """The server is busy or unreachable; a retry may help."""


def _solution(reply: Mapping[str, Any], seconds: float) -> Solution:
    try:
        [choice] = reply["choices"]
        message, usage = choice["message"], reply.get("usage") or {}
        details = usage.get("completion_tokens_details") or {}
        tools = message.get("executed_tools")
        if tools is None and "observation_tokens" in details:
            tools = []  # a server that runs code omits the field if none ran
        return Solution(
            text=message.get("content") or "",
            finish=reason if (reason := choice["finish_reason"]) in ("length", "too_long") else "stop",
            tokens=int(usage.get("completion_tokens", 0)) - int(details.get("observation_tokens") or 0),
            seconds=seconds,
            tools=None if tools is None else _tool_usage(tools),
            tool_wait_seconds=None if tools is None else _wait_seconds(tools),
            pending_blocks=None if tools is None else len(message.get("unflushed_blocks") or ()),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(f"the server's response is not a chat completion: {error!r}") from None


def _wait_seconds(tools: list[dict[str, Any]]) -> float:
    waits = (float(tool["waited_ms"]) - float(tool.get("container_wait_ms", 0.0)) for tool in tools)
    return sum(max(wait, 0.0) for wait in waits) / 1000


def _tool_usage(tools: list[dict[str, Any]]) -> ToolUsage:
    if any(tool["status"] == "sandbox_error" for tool in tools):
        raise BackendError("the server's sandbox failed during an episode")
    return ToolUsage(
        flushes=len(tools),
        executed=sum(len(tool["blocks"]) for tool in tools),
        executed_by_model=sum(
            len(tool["blocks"]) for tool in tools if tool.get("requested_by", "model") == "model"
        ),
        delayed=sum(tool["delayed"] for tool in tools),
        calls=sum(len(tool.get("calls") or ()) for tool in tools),
        errors=sum(tool["status"] != "ok" for tool in tools),
        seconds=sum(tool["wall_ms"] for tool in tools) / 1000,
        hidden_seconds=sum(tool["hidden_ms"] for tool in tools) / 1000,
    )
