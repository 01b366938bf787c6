"""Rollouts and evaluations whose code calls tools, in real containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import with_instruction
from service.engines.base import Sampling
from service.episode.runner import EpisodeRunner
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from tests.support.reply_engine import ReplyEngine
from tests.support.scripted import EOS
from trainer.environments.multi_hop import facts
from trainer.environments.settings import ToolSettings
from trainer.environments.tools import RolloutTools, prompt_section
from trainer.evaluation.backends import LocalBackend
from trainer.training.episodes import LocalRolloutWorker, RolloutSettings, Sample

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

SEARCH = ToolSettings(function="trainer.environments.multi_hop:search", read_only=True)
SETTINGS = RolloutSettings(policy=DeferralPolicy(prompt="brief-v1"), sampling=Sampling())
CHAIN = (
    "Look\n```python\nfrom tools import search\na = search('boss of Ada')[0].split()[-1]\n```\nthen\n"
    "```python\nb = search('home of ' + a)[0].split()[-1]\nprint(b)\n```<tool_call>"
)


def not_json(text: str) -> list[str]:
    """Return what is not JSON.

    Args:
        text: Any text.

    Returns:
        A list, it claims.
    """
    return {text}  # type: ignore[return-value]


def picky(text: str) -> str:
    """Reject everything.

    Args:
        text: Any text.
    """
    raise LookupError(f"no {text} here")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(docker_sandbox_settings: DockerSandboxSettings) -> AsyncGenerator[DockerSandbox]:
    started = DockerSandbox(docker_sandbox_settings)
    await started.start()
    yield started
    await started.stop()


@asynccontextmanager
async def tools_of(*settings: ToolSettings) -> AsyncGenerator[RolloutTools]:
    tools = RolloutTools(settings)
    await tools.start()
    try:
        yield tools
    finally:
        await tools.stop()


def writes(code: str) -> Callable[[str], str]:
    """A model that writes ``code`` and boxes the last word of what it prints."""

    def reply(context: str) -> str:
        if "Code execution result" not in context:
            return code
        shown = context.rpartition("Code execution result: ")[2].partition("\n")[0]
        return f"\\boxed{{{shown}}}{EOS}"

    return reply


async def play(sandbox: DockerSandbox, code: str, *settings: ToolSettings) -> Sample:
    engine = ReplyEngine(writes(code))
    async with tools_of(*settings) as tools:
        worker = LocalRolloutWorker(engine, sandbox, SETTINGS, tools)
        prompt = engine.tokenizer.encode("?", allow_special=True)
        return await worker.run_episode(prompt, seed=1, episode_id="e")


async def test_code_calls_a_function_in_a_delayed_block(sandbox: DockerSandbox) -> None:
    sample = await play(sandbox, CHAIN, SEARCH)
    assert sample.answer == facts()[facts()["Ada", "boss"], "home"]
    assert (sample.executed, sample.delayed) == (2, 1)
    [flush] = sample.tools
    assert [(call.name, call.status) for call in flush.calls] == [("search", "ok"), ("search", "ok")]
    assert flush.calls[1].arguments == {"query": f"home of {facts()['Ada', 'boss']}"}
    assert sample.is_valid


async def test_an_error_of_a_function_is_an_exception_in_the_code(sandbox: DockerSandbox) -> None:
    name = f"{__name__}:picky"
    code = (
        "\n```python\nfrom tools import ToolError, picky\ntry:\n    picky('luck')\n"
        "except ToolError as error:\n    print(error)\n```<tool_call>"
    )
    sample = await play(sandbox, code, ToolSettings(function=name))
    assert sample.answer == "LookupError: no luck here"
    [flush] = sample.tools
    assert [(call.status, call.error) for call in flush.calls] == [("error", "LookupError: no luck here")]


async def test_a_result_that_is_not_json_is_an_error_of_the_tool(sandbox: DockerSandbox) -> None:
    code = "\n```python\nfrom tools import not_json\nprint(not_json('a'))\n```<tool_call>"
    sample = await play(sandbox, code, ToolSettings(function=f"{__name__}:not_json"))
    assert sample.answer is not None
    assert sample.answer.startswith("tools.ToolError: not_json() returned an invalid result")
    assert sample.is_valid  # the sandbox works


async def test_evaluations_list_the_tools_and_count_the_calls(sandbox: DockerSandbox) -> None:
    prompts: list[str] = []

    def reply(context: str) -> str:
        prompts.append(context)
        return writes(CHAIN)(context)

    async with tools_of(SEARCH) as tools:
        backend = LocalBackend(ReplyEngine(reply), sandbox, SETTINGS, tools=tools)
        solution = await backend.solve([{"role": "user", "content": "Where does Ada's boss live?"}], seed=1)
    assert solution.tools is not None
    assert (solution.tools.calls, solution.tools.flushes) == (2, 1)
    assert prompts[0].count("def search(query: str) -> list[str]:") == 1
    assert prompts[0].index("def search") < prompts[0].index("Where does")


async def test_training_prompts_equal_those_of_the_server(sandbox: DockerSandbox) -> None:
    engine = ReplyEngine(writes(CHAIN))
    messages: list[dict[str, object]] = [{"role": "user", "content": "Where?"}]
    async with tools_of(SEARCH) as tools:
        runner = EpisodeRunner(engine, sandbox, SETTINGS.policy, SETTINGS.sampling)
        served = runner.render(messages, deferral=True, code_tools=tools.specs)
    section = await asyncio.to_thread(prompt_section, [SEARCH])
    turns = with_instruction(messages, SETTINGS.policy.prompt, section)
    assert served == engine.tokenizer.render_chat(turns, template_kwargs={"enable_thinking": False})
