"""``code_interpreter_call``: one item a flush, which opens when its first block becomes pending."""

from __future__ import annotations

from service.api.responses.output import Events, Output
from service.api.wire import Json
from service.events import ExecutedTool, InvokedBlock
from service.sandbox.base import Status

_STATUSES: dict[Status, str] = {
    "ok": "completed",
    "error": "completed",  # the interpreter did its work: the traceback is its output
    "output_limit": "completed",
    "timeout": "failed",
    "oom": "failed",
    "sandbox_error": "failed",
}


class CodeItem:
    """The blocks that one flush runs as one script.

    OpenAI's names for what happens: ``in_progress`` when the first block is pending, ``code.delta`` for each
    block, and at the flush ``code.done``, ``interpreting``, then ``completed`` when the model has its output.
    What a block does in the background before the flush is not told: until the flush it has not happened.

    Args:
        output: where it belongs.
        container: the episode's container, as far as it is known.
    """

    def __init__(self, output: Output, container: str) -> None:
        self._output = output
        self._code = ""
        self._flushed = False
        self._index, self._id = output.open(
            "ci",
            {
                "type": "code_interpreter_call",
                "status": "in_progress",
                "code": "",
                "container_id": container,
                "outputs": None,
            },
        )

    def open(self) -> Events:
        return [self._output.added(self._index), self._event("response.code_interpreter_call.in_progress")]

    def add(self, block: InvokedBlock) -> Events:
        """One more block is pending."""
        piece = f"\n{block.code}" if self._code else block.code
        self._code += piece
        return [self._event("response.code_interpreter_call_code.delta", delta=piece)]

    def flush(self) -> Events:
        """The model asks for the output."""
        self._flushed = True
        return [self._code_done(), self._event("response.code_interpreter_call.interpreting")]

    def finish(self, tool: ExecutedTool, container: str) -> Events:
        """The output is there. How the code fared is the item's status; the call itself is completed."""
        return [
            self._event("response.code_interpreter_call.completed"),
            self._output.done(
                self._index,
                status=_STATUSES[tool.status],
                code=self._code,
                container_id=container,
                outputs=[{"type": "logs", "logs": tool.output}],
            ),
        ]

    def close(self, status: str) -> Events:  # noqa: ARG002  it has no output, whatever the rest is
        """The response is over before the output was there, or the model never asked for it."""
        done = [] if self._flushed else [self._code_done()]
        return [*done, self._output.done(self._index, status="incomplete", code=self._code)]

    def _code_done(self) -> Json:
        return self._event("response.code_interpreter_call_code.done", code=self._code)

    def _event(self, name: str, **fields: object) -> Json:
        return {"type": name, "item_id": self._id, "output_index": self._index, **fields}
