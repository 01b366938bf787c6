"""The section ``[[tools]]`` of a recipe: functions that the model's code can call.

::

    [[tools]]
    function = "my_package.tools:search"     # module:function
    read_only = true

    [[tools]]
    mcp_server = "uvx mcp-server-time"       # a command, or a URL such as http://127.0.0.1:9000/mcp
    allowed_tools = ["get_current_time"]

A function needs type hints and a docstring in Google's style with all its arguments, as for TRL's ``tools``;
both are shown to the model. It may be asynchronous; others run in threads. Its result must be a JSON value,
and the message of an exception is raised in the model's code as a ``ToolError``.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ToolSettings(BaseModel):
    """One item of ``[[tools]]``: a Python function, or an MCP server with its tools."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    function: str | None = None
    """Import path of a Python function, such as ``my_package.tools:search``."""
    mcp_server: str | None = None
    """Command of an MCP server over stdio, or the URL of one over streamable HTTP."""
    allowed_tools: tuple[str, ...] | None = None
    """Names of the server's tools to offer. Default: all."""
    read_only: bool = False
    """The tools have no side effects, so code may call them before it is flushed, while the model still
    writes."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds after which a call fails."""
    latency_s: float = Field(default=0.0, ge=0)
    """Seconds that are added to each call, to train under the latency of the tool that will be served."""

    def __str__(self) -> str:
        return self.function or self.mcp_server or ""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.function is None) == (self.mcp_server is None):
            raise ValueError("set either function or mcp_server")
        if self.function is not None and self.allowed_tools is not None:
            raise ValueError("allowed_tools needs mcp_server: remove it")
        if self.function is not None and ":" not in self.function:
            raise ValueError(f"function is {self.function!r}: write an import path, module:function")
        return self
