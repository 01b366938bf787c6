"""``executed_tools``: how a deferred call is shown to clients. The name follows Groq's precedent.

It is never put into ``tool_calls``: clients would run the code themselves.

``final_answer``: the one field that holds just the answer of a reply, without code and observations.

OpenAI's log-probability objects.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.common.json import Json
from service.deferral.answer import last_boxed
from service.engines.base import TokenChunk, Tokenizer
from service.episode.events import ExecutedTool, InvokedBlock


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


class FinalAnswer:
    r"""Finds the answer while a reply grows.

    It is what the last complete ``\boxed{...}`` holds; one that code printed counts, as it ends the episode.
    A reply without a box is answered by its last turn: the text after the last observation, or all of it if
    no code ran. There is no answer if such a turn was cut by a limit, ends with code that never ran, or calls
    the client's functions. Thoughts are never searched.
    """

    def __init__(self) -> None:
        self._boxed: str | None = None
        self._turn: list[str] = []

    def wrote(self, text: str) -> None:
        """The model wrote ``text`` as content."""
        self._turn.append(text)

    def observed(self, text: str) -> None:
        """The observation ``text`` ends the turn."""
        self._boxed = last_boxed(text) or last_boxed("".join(self._turn)) or self._boxed
        self._turn = []

    def result(self, *, complete: bool) -> str | None:
        """Return the answer; None if there is none.

        Args:
            complete: the last turn ended by itself, with no code pending and no call of a function.
        """
        text = "".join(self._turn)
        boxed = last_boxed(text) or self._boxed
        return boxed if boxed is not None or not complete else text.strip() or None


LEAST = -9999.0
"""Stands for minus infinity, which JSON lacks."""


def logprob_item(chunk: TokenChunk, at: int, tokenizer: Tokenizer) -> Json:
    """The token at place ``at`` of ``chunk``, with its alternatives."""
    top = chunk.top_logprobs[at] if chunk.top_logprobs else ()
    return {
        **_token(chunk.ids[at], chunk.logprobs[at], tokenizer),
        "top_logprobs": [_token(item.token_id, item.logprob, tokenizer) for item in top],
    }


def _token(token_id: int, logprob: float, tokenizer: Tokenizer) -> Json:
    token = tokenizer.decode([token_id])
    # A token that holds part of a character decodes to a replacement; its bytes are not known here.
    known = "\ufffd" not in token
    return {
        "token": token,
        "logprob": max(logprob, LEAST),
        "bytes": list(token.encode("utf-8", "surrogatepass")) if known else None,
    }
