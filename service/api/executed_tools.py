"""``executed_tools``: how a deferred call is shown to clients. The name follows Groq's precedent.

It is never put into ``tool_calls``: clients would run the code themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.api.wire import Json
from service.events import ExecutedTool, InvokedBlock


def executed_tool(tool: ExecutedTool, index: int) -> Json:
    """A flush that is done. Times ending in ``_at`` are Unix seconds, those in ``_ms`` milliseconds."""
    return {
        **_head(index, tool.id, tool.blocks, tool.status),
        "output": tool.output,
        "delayed": tool.delayed,
        "requested_by": tool.requested_by,
        "flushed_at": tool.flushed_at,
        "started_at": tool.started_at,
        "finished_at": tool.finished_at,
        "runs": [{"started_at": start, "finished_at": end} for start, end in tool.runs],
        "wall_ms": round(tool.wall_ms, 3),
        "waited_ms": round(tool.waited_ms, 3),
        "hidden_ms": round(tool.hidden_ms, 3),
        "container_wait_ms": round(tool.container_wait_ms, 3),
    }


def waiting_tool(tool_id: str, index: int, blocks: Sequence[InvokedBlock], status: str) -> Json:
    """A flush to be: ``pending`` until the marker, then ``running`` until its result is there."""
    return _head(index, tool_id, blocks, status)


def _head(index: int, tool_id: str, blocks: Sequence[InvokedBlock], status: str) -> Json:
    return {
        "index": index,
        "id": tool_id,
        "type": "python",
        "status": status,
        "blocks": [block_json(block) for block in blocks],
    }


def block_json(block: InvokedBlock) -> Json:
    """Return a block that the model closed; ``invoked_at`` in Unix seconds."""
    return {"code": block.code, "invoked_at_token": block.invoked_at_token, "invoked_at": block.invoked_at}
