"""Tools of an MCP server, called by code in a real container, through the API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio

from service.deferral.policy import DeferralPolicy
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from tests.support.mcp_server import McpServed, serve_mcp
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import make_app, serve

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
TURN = """I look it up.
```python
from tools import add, gather, note, odd_name, ToolError
total = sum(gather(add.bind(n) for n in range(4)))
```
And I keep it.
```python
print(total, odd_name([1, 2]), note("kept"))
try: add("x")
except ToolError as error: print(error)
```<tool_call>"""


@pytest_asyncio.fixture
async def mcp() -> AsyncGenerator[McpServed]:
    async with serve_mcp() as served:
        yield served


async def test_code_in_a_container_calls_an_mcp_server(
    mcp: McpServed, docker_sandbox_settings: DockerSandboxSettings
) -> None:
    policy = DeferralPolicy(run_limit_s=30, max_output_chars=2000, max_output_tokens=2000)
    app = make_app(
        ScriptedEngine(TURN, "It is \\boxed{10}." + EOS, delay_s=0.005),
        DockerSandbox(docker_sandbox_settings),
        policy,
        mcp_private_hosts=mcp.host,
    )
    tool: Any = {
        "type": "mcp",
        "server_label": "demo",
        "server_url": mcp.url,
        "require_approval": "never",
        "read_only": ["add", "odd-name"],
    }
    async with serve(app) as served:
        response = await served.openai.responses.create(
            model="scripted",
            input="4?",
            tools=[tool],
            include=["code_interpreter_call.outputs"],
        )
    assert response.status == "completed"
    [code] = [item for item in response.output if item.type == "code_interpreter_call"]
    assert code.outputs is not None
    assert code.outputs[0].logs.splitlines() == [  # type: ignore[union-attr]
        "10 {'count': 2} noted kept",
        'add(): "x" is not of type "integer" at ["a"]',
    ]
    calls = [item for item in response.output if item.type == "mcp_call"]
    assert [call.name for call in calls] == [*4 * ["add"], "odd-name", "note", "add"]
    assert [call.status for call in calls] == [*6 * ["completed"], "failed"]
    assert sorted(mcp.log) == ["add 0 1", "add 1 1", "add 2 1", "add 3 1", "note kept"]
