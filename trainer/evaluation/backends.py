"""Who solves benchmark problems: an engine and a sandbox of our own, or any OpenAI-compatible server."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from service.engines.base import Engine
from service.episode.runner import EpisodeRunner
from service.sandbox.base import Sandbox
from trainer.training.episodes import RolloutSettings, sample_episode


class SolverError(Exception):
    """No attempt could be made; the message says why. Nothing is said of the model."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How an episode used its tool; see ``trainer.evaluation.results.Attempt``."""

    flushes: int
    executed: int
    executed_by_model: int
    delayed: int
    errors: int
    seconds: float
    hidden_seconds: float


@dataclass(frozen=True, slots=True)
class Solution:
    """One episode, as far as an evaluation cares."""

    text: str
    finish: Literal["stop", "length", "too_long"]
    """See ``trainer.evaluation.results.Attempt``."""
    tokens: int
    seconds: float
    tools: ToolUse | None
    """None from a server that runs no code, or does not tell."""


class Solver(Protocol):
    """Solves one problem."""

    async def solve(self, question: str, seed: int) -> Solution:
        """Raises SolverError, or EngineError, if no attempt could be made."""
        ...


class EpisodeSolver:
    """Plays episodes on an engine and a sandbox, both started: the loop that is served and trained."""

    def __init__(self, engine: Engine, sandbox: Sandbox, settings: RolloutSettings) -> None:
        self._runner = EpisodeRunner(engine, sandbox, settings.policy, settings.sampling)
        self._eager = settings.eager

    async def solve(self, question: str, seed: int) -> Solution:
        prompt = self._runner.render([{"role": "user", "content": question}], deferral=True)
        sample = await sample_episode(
            self._runner, prompt, seed=seed, episode_id=f"e{seed}", eager=self._eager
        )
        if any(tool.status == "sandbox_error" for tool in sample.tools):
            raise SolverError("the sandbox failed during an episode")
        finish: Literal["stop", "length", "too_long"] = "length" if sample.outcome.is_truncated else "stop"
        return Solution(
            text=sample.text,
            finish=finish if sample.ids else "too_long",
            tokens=sum(sample.sampled),
            seconds=sample.seconds,
            tools=ToolUse(
                flushes=len(sample.tools),
                executed=sample.executed,
                executed_by_model=sample.executed_by_model,
                delayed=sample.delayed,
                errors=sum(tool.status != "ok" for tool in sample.tools),
                seconds=sample.tool_seconds,
                hidden_seconds=sample.hidden_seconds,
            ),
        )


async def check_server(client: httpx.AsyncClient) -> None:
    """Check that a server is there and takes the key, before a thousand requests find out.

    The client's base URL may lack ``/v1``: it is added if the server has its routes below that.

    Raises:
        SolverError: not so, with the hint.
    """
    try:
        response = await client.get("models")
        if response.status_code == 404 and not client.base_url.path.endswith("/v1/"):
            response = await client.get("v1/models")
            if response.status_code == 404:
                raise SolverError(
                    f"url: the server at {client.base_url} has no route /models (404): give the base URL of "
                    f"an OpenAI-compatible server, with or without /v1"
                )
            client.base_url = client.base_url.join("v1/")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise SolverError(
            f"url: the server at {client.base_url} did not answer ({error or type(error).__name__}): start "
            f"it, or correct the URL"
        ) from None
    if response.status_code in (401, 403):
        raise SolverError(
            f"the server at {client.base_url} refuses the key ({response.status_code}): give it as --api-key "
            f"or in IHGRPO_API_KEY"
        )


class ServerSolver:
    """Asks ``POST {url}/chat/completions``. A server that is busy or away is asked again.

    Args:
        client: with the server's base URL (see ``check_server``), headers and time limit.
        model: the name that the server knows it by.
        request: more fields of each request, such as ``temperature``.
        instruction: put before each problem. Our own server adds what a deferring model needs by itself.
        tries: for one problem, with growing waits between them.
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

    async def solve(self, question: str, seed: int) -> Solution:
        body = {
            **self._body,
            "seed": seed,
            "messages": [{"role": "user", "content": self._instruction + question}],
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
            raise SolverError(f"{error}, {self._tries} times in a row") from None
        return _solution(reply, time.monotonic() - began)

    async def _ask(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            response = await self._client.post("chat/completions", json=body)
        except httpx.TransportError as error:
            raise _BusyError(
                f"the server at {self._client.base_url} did not answer ({type(error).__name__})"
            ) from None
        if response.status_code in (408, 409, 429) or response.status_code >= 500:
            raise _BusyError(f"the server answered {response.status_code}")
        if response.is_error:
            if _TOO_LONG.search(response.text) and not _ASKS_TOO_MUCH.search(response.text):
                return _NO_ROOM
            raise SolverError(f"{response.url} answered {response.status_code}: {_message(response)}")
        try:
            reply: Mapping[str, Any] = response.json()
        except ValueError:
            raise SolverError(
                f"{response.url} answered with something that is not JSON: is it an OpenAI-compatible server?"
            ) from None
        return reply


_TOO_LONG: Final = re.compile("context_length_exceeded|maximum (context|model) length")
_ASKS_TOO_MUCH: Final = re.compile("max_tokens|max_completion_tokens|in the completion")
"""The request's own limit is what does not fit: the same for every problem, and to be mended."""
_NO_ROOM: Final[Mapping[str, Any]] = {
    "choices": [{"finish_reason": "too_long", "message": {"content": ""}}],
}


def _message(response: httpx.Response) -> str:
    """The words of an error in OpenAI's shape, or the start of what came instead."""
    try:
        return str(response.json()["error"]["message"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return response.text[:500]


class _BusyError(Exception):
    """Another try may help."""


def _solution(reply: Mapping[str, Any], seconds: float) -> Solution:
    try:
        [choice] = reply["choices"]
        message, usage = choice["message"], reply.get("usage") or {}
        details = usage.get("completion_tokens_details") or {}
        tools = message.get("executed_tools")
        if tools is None and "observation_tokens" in details:
            tools = []  # a server that runs code leaves the field out where none ran
        return Solution(
            text=message.get("content") or "",
            finish=reason if (reason := choice["finish_reason"]) in ("length", "too_long") else "stop",
            tokens=int(usage.get("completion_tokens", 0)) - int(details.get("observation_tokens") or 0),
            seconds=seconds,
            tools=None if tools is None else _tool_use(tools),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SolverError(f"the server's reply is not a chat completion: {error!r}") from None


def _tool_use(tools: list[dict[str, Any]]) -> ToolUse:
    if any(tool["status"] == "sandbox_error" for tool in tools):
        raise SolverError("the server's sandbox failed during an episode")
    return ToolUse(
        flushes=len(tools),
        executed=sum(len(tool["blocks"]) for tool in tools),
        executed_by_model=sum(
            len(tool["blocks"]) for tool in tools if tool.get("requested_by", "model") == "model"
        ),
        delayed=sum(tool["delayed"] for tool in tools),
        errors=sum(tool["status"] != "ok" for tool in tools),
        seconds=sum(tool["wall_ms"] for tool in tools) / 1000,
        hidden_seconds=sum(tool["hidden_ms"] for tool in tools) / 1000,
    )
