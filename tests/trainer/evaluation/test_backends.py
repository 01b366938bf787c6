from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.sandbox.base import ExecutionResult
from tests.support.reply_engine import ReplyEngine
from tests.support.scripted import EOS, ScriptedSandbox, printed
from trainer.evaluation.backends import (
    BackendError,
    LocalBackend,
    ServerBackend,
    Solution,
    ToolUsage,
    check_server,
)
from trainer.training.episodes import RolloutSettings

TOOL = {
    "index": 0, "id": "x", "type": "python", "status": "ok", "output": "42", "delayed": 1,
    "blocks": [{"code": "a"}, {"code": "b"}], "wall_ms": 200.0, "waited_ms": 50.0, "hidden_ms": 150.0,
}  # fmt: skip
REPLY: dict[str, Any] = {
    "choices": [
        {"finish_reason": "stop", "message": {"content": "so \\boxed{42}", "executed_tools": [TOOL]}}
    ],
    "usage": {"completion_tokens": 30, "completion_tokens_details": {"observation_tokens": 10}},
}


def server(*answers: httpx.Response | Exception) -> tuple[httpx.AsyncClient, list[httpx.Request]]:
    """A client of a server that returns ``answers`` in turn, then the last one forever."""
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        answer = answers[min(len(requests), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.AsyncClient(base_url="http://test/v1", transport=httpx.MockTransport(handle)), requests


def asks(question: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": question}]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without waiting."""
    monkeypatch.setattr("trainer.evaluation.backends.wait_random_exponential", lambda **_: lambda _: 0)


async def test_server_request_is_openai_compatible() -> None:
    client, requests = server(httpx.Response(200, json=REPLY))
    solver = ServerBackend(client, "m", {"temperature": 0.5}, instruction="Solve: ")
    solution = await solver.solve(asks("6 * 7?"), seed=3)
    assert (solution.text, solution.finish, solution.tokens) == ("so \\boxed{42}", "stop", 20)
    assert solution.tools == ToolUsage(
        flushes=1,
        executed=2,
        executed_by_model=2,
        delayed=1,
        calls=0,
        errors=0,
        seconds=0.2,
        hidden_seconds=0.15,
    )
    assert str(requests[0].url) == "http://test/v1/chat/completions"
    assert json.loads(requests[0].content) == {
        "model": "m", "temperature": 0.5, "seed": 3,
        "messages": [{"role": "user", "content": "Solve: 6 * 7?"}],
    }  # fmt: skip


async def test_context_precedes_the_instruction() -> None:
    client, requests = server(httpx.Response(200, json=REPLY))
    system: dict[str, object] = {"role": "system", "content": "Be brief."}
    await ServerBackend(client, "m", {}, instruction="Solve: ").solve([system, *asks("1+1?")], seed=0)
    assert json.loads(requests[0].content)["messages"] == [system, *asks("Solve: 1+1?")]


async def test_reward_functions_see_what_a_server_reports() -> None:
    unflushed = {"choices": [{"finish_reason": "stop", "message": {
        "content": "x", "executed_tools": [TOOL, TOOL], "unflushed_blocks": [{"code": "a"}],
    }}], "usage": REPLY["usage"]}  # fmt: skip
    client, _ = server(httpx.Response(200, json=unflushed))
    episode = (await ServerBackend(client, "m", {}).solve(asks("?"), seed=0)).finished()
    assert (episode.tool_wait_seconds, episode.pending_blocks, episode.open_fence) == (0.1, 1, None)
    client, _ = server(httpx.Response(200, json={"choices": [{"finish_reason": "stop", "message": {}}]}))
    episode = (await ServerBackend(client, "m", {}).solve(asks("?"), seed=0)).finished()
    assert (episode.tool_wait_seconds, episode.pending_blocks, episode.tools) == (None, None, None)


async def test_other_servers_report_no_tools() -> None:
    client, _ = server(
        httpx.Response(200, json={"choices": [{"finish_reason": "length", "message": {"content": None}}]})
    )
    solution = await ServerBackend(client, "m", {}).solve(asks("?"), seed=0)
    assert (solution.text, solution.finish, solution.tokens, solution.tools) == ("", "length", 0, None)


@pytest.mark.parametrize("first", [httpx.Response(429), httpx.Response(503), httpx.ConnectError("refused")])
async def test_retries_busy_server(first: httpx.Response | Exception) -> None:
    client, requests = server(first, httpx.Response(200, json=REPLY))
    assert (await ServerBackend(client, "m", {}).solve(asks("?"), seed=0)).tokens == 20
    assert len(requests) == 2


@pytest.mark.parametrize(("answer", "message", "asked"), [
    (httpx.Response(503), "answered 503, 3 times in a row", 3),
    (httpx.ConnectError("refused"), r"did not respond \(ConnectError\), 3 times", 3),
    (httpx.Response(400, text="no such field"), "answered 400: no such field", 1),
    (httpx.Response(404, json={"error": {"message": "no model m"}}), "answered 404: no model m$", 1),
    (httpx.Response(400, json={"error": {"message": "max_tokens is too large; maximum context length is 9"}}),
     "answered 400: max_tokens is too large", 1),
    (httpx.Response(200, text="<html>"), r"http://test/v1/chat/completions .* invalid JSON", 1),
    (httpx.Response(200, json={"choices": []}), "not a chat completion", 1),
    (httpx.Response(200, json={"error": "x"}), "not a chat completion", 1),
])  # fmt: skip
async def test_reports_failed_requests(answer: httpx.Response | Exception, message: str, asked: int) -> None:
    client, requests = server(answer)
    with pytest.raises(BackendError, match=message):
        await ServerBackend(client, "m", {}, tries=3).solve(asks("?"), seed=0)
    assert len(requests) == asked


@pytest.mark.parametrize("error", [
    {"message": "the prompt leaves no room", "code": "context_length_exceeded"},
    {"message": "This model's maximum context length is 2048 tokens.", "code": 400},
    {"message": "The prompt is longer than the maximum model length of 2048.", "code": None},
])  # fmt: skip
async def test_prompt_too_long_for_server_is_a_result(error: dict[str, Any]) -> None:
    client, requests = server(httpx.Response(400, json={"error": error}))
    solution = await ServerBackend(client, "m", {}).solve(asks("?"), seed=0)
    assert (solution.text, solution.finish, solution.tokens) == ("", "too_long", 0)
    assert len(requests) == 1


@pytest.mark.parametrize(("answer", "message"), [
    (httpx.ConnectError("refused"), "url: the server at http://test/v1/ did not respond .refused.*start it"),
    (httpx.Response(401), "rejected the key .401.: pass it as --api-key"),
])  # fmt: skip
async def test_checks_server_before_requests(answer: httpx.Response | Exception, message: str) -> None:
    client, _ = server(answer)
    with pytest.raises(BackendError, match=message):
        await check_server(client)
    for fine in (httpx.Response(200, json={"data": []}), httpx.Response(404)):
        client, requests = server(fine)
        await check_server(client)
        assert str(requests[0].url) == "http://test/v1/models"


async def test_sandbox_failure_is_a_backend_error() -> None:
    reply = json.loads(json.dumps(REPLY))
    reply["choices"][0]["message"]["executed_tools"][0]["status"] = "sandbox_error"
    client, _ = server(httpx.Response(200, json=reply))
    with pytest.raises(BackendError, match="server's sandbox failed"):
        await ServerBackend(client, "m", {}).solve(asks("?"), seed=0)
    broken = ExecutionResult("", "", "sandbox_error", wall_seconds=0, waited_seconds=0)
    with pytest.raises(BackendError, match="sandbox failed"):
        await play(lambda blocks: broken)


async def play(
    answer: Callable[[list[str]], ExecutionResult], policy: DeferralPolicy | None = None
) -> Solution:
    def reply(context: str) -> str:
        return (
            f"\\boxed{{42}}{EOS}"
            if context.endswith("</tool_call>\n")
            else "```python\nprint(42)\n```<tool_call>"
        )

    settings = RolloutSettings(policy or DeferralPolicy(prompt="brief-v1"), Sampling())
    return await LocalBackend(ReplyEngine(reply), ScriptedSandbox(answer), settings).solve(asks("?"), seed=1)


async def test_distinguishes_too_long_prompt_from_cut_episode() -> None:
    solution = await play(
        lambda blocks: printed("42"), DeferralPolicy(prompt="brief-v1", max_episode_tokens=8)
    )
    assert (solution.text, solution.finish, solution.tokens) == ("", "too_long", 0)


async def test_local_backend_reports_same_fields() -> None:
    solution = await play(lambda blocks: printed("42"))
    assert solution.text.endswith(f"\\boxed{{42}}{EOS}")
    assert solution.finish == "stop"
    assert solution.tools == ToolUsage(
        flushes=1,
        executed=1,
        executed_by_model=1,
        delayed=0,
        calls=0,
        errors=0,
        seconds=0.2,
        hidden_seconds=pytest.approx(0.2),
    )
    assert 0 < solution.tokens < len(solution.text)


@pytest.mark.parametrize("base", ["http://test", "http://test/", "http://test/v1", "http://test/v1/"])
async def test_adds_v1_to_base_url(base: str) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200 if request.url.path.startswith("/v1/") else 404, json={"data": []})

    async with httpx.AsyncClient(base_url=base, transport=httpx.MockTransport(handle)) as client:
        await check_server(client)
        assert str(client.base_url) == "http://test/v1/"


async def test_keeps_other_base_url_and_rejects_url_without_models() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200 if request.url.path == "/v1beta/openai/models" else 404, json={"data": []})

    transport = httpx.MockTransport(handle)
    async with httpx.AsyncClient(base_url="http://test/v1beta/openai", transport=transport) as client:
        await check_server(client)
        assert str(client.base_url) == "http://test/v1beta/openai/"
    async with httpx.AsyncClient(base_url="http://test/web", transport=transport) as client:
        with pytest.raises(BackendError, match=r"no route /models \(404\): pass the base URL"):
            await check_server(client)


async def test_reply_without_code_has_zero_flushes() -> None:
    reply = json.loads(json.dumps(REPLY))
    del reply["choices"][0]["message"]["executed_tools"]
    client, _ = server(httpx.Response(200, json=reply))
    solution = await ServerBackend(client, "m", {}).solve(asks("?"), seed=0)
    assert solution.tools is not None
    assert solution.tools.flushes == 0
    del reply["usage"]["completion_tokens_details"]
    client, _ = server(httpx.Response(200, json=reply))
    assert (await ServerBackend(client, "m", {}).solve(asks("?"), seed=0)).tools is None


async def test_an_episode_without_python_is_one_turn_without_tools() -> None:
    seen: list[str] = []

    def reply(context: str) -> str:
        seen.append(context)
        return f"```python\nprint(42)\n```<tool_call> so \\boxed{{1}}{EOS}"

    sandbox = ScriptedSandbox(lambda blocks: pytest.fail("no code may run"))
    settings = RolloutSettings(DeferralPolicy(), Sampling(temperature=0))
    backend = LocalBackend(ReplyEngine(reply), sandbox, settings, python=False)
    solution = await backend.solve(asks("What is it?"), seed=1)
    assert len(seen) == 1
    assert "Python" not in seen[0]
    assert "\\boxed{}" in seen[0]
    assert "What is it?" in seen[0]
    assert solution.text.strip().startswith("```python")
    assert (solution.tools, solution.finish) == (None, "stop")
    assert solution.tokens > 0


async def test_an_episode_of_our_own_with_the_fields_of_rewards() -> None:
    settings = RolloutSettings(DeferralPolicy(), Sampling(temperature=0))
    text = f"```python\nprint(42)\n```\nso \\boxed{{1}}{EOS}"
    backend = LocalBackend(
        ReplyEngine(lambda context: text), ScriptedSandbox(lambda b: printed("")), settings
    )
    episode = (await backend.solve(asks("?"), seed=1)).finished()
    assert (episode.pending_blocks, episode.open_fence, episode.tool_wait_seconds) == (1, False, 0.0)
    assert (episode.outcome, episode.is_void, episode.tools) == ("answer", False, ())
