from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trainer.environments.settings import ToolSettings
from trainer.evaluation.evaluate import EvalConfig
from trainer.training.config import load_config, recipe_folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "set either function or mcp_server"),
        ({"function": "m:f", "mcp_server": "server"}, "set either function or mcp_server"),
        ({"function": "m.f"}, "write an import path, module:function"),
        ({"function": "m:f", "allowed_tools": ["a"]}, "allowed_tools needs mcp_server"),
        ({"function": "m:f", "timeout_s": 0}, "greater than 0"),
        ({"function": "m:f", "latency_s": -1}, "greater than or equal to 0"),
        ({"function": "m:f", "side_effects": False}, "Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_explained(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ToolSettings.model_validate(values)


def test_the_shipped_recipe_has_a_tool() -> None:
    [tool] = load_config(recipe_folder() / "multi-hop.toml").tools
    assert str(tool) == "trainer.environments.multi_hop:search"
    assert tool.read_only


def evaluation(**values: Any) -> EvalConfig:
    return EvalConfig.model_validate({"model": "m", "benchmarks": ["b.jsonl"], "out": "o", **values})


def test_evaluations_accept_tools_as_text() -> None:
    config = evaluation(tools=["my.tools:search", "http://127.0.0.1:9000/mcp", "uvx mcp-server-time"])
    assert [(tool.function, tool.mcp_server) for tool in config.tools] == [
        ("my.tools:search", None),
        (None, "http://127.0.0.1:9000/mcp"),
        (None, "uvx mcp-server-time"),
    ]
    assert [tool["function"] for tool in config.deciding()["tools"]] == ["my.tools:search", None, None]
    assert "tools" not in evaluation().deciding()  # evaluations without tools resume after an upgrade


def test_tools_need_a_model_in_this_process() -> None:
    with pytest.raises(ValidationError, match="tools needs a model that runs here"):
        evaluation(tools=["m:f"], url="http://127.0.0.1:8000")
    with pytest.raises(ValidationError, match="tools needs a model that runs here"):
        evaluation(tools=["m:f"], python=False)
