"""Scripts: compile and run blocks in a namespace, as a notebook does."""

from __future__ import annotations

import ast
import linecache
import sys
import traceback
from types import CodeType, TracebackType
from typing import Any, TextIO

# Code may replace these in ``builtins``. Running its next block must not depend on them.
_exec, _eval, _compile, _repr = exec, eval, compile, repr


class Script:
    """The blocks of one flush, run in order in one namespace as if they were one file.

    Line numbers continue from block to block, so that a traceback is the same whether the blocks run one by
    one or joined by newlines.
    """

    def __init__(self, name: str, namespace: dict[str, Any]) -> None:
        self.name = name
        self.namespace = namespace
        self.value: object = None
        """Value of the last statement so far if it is an expression, else None."""
        self._source = ""
        self._lines = 0

    def run(self, block: str) -> None:
        """Run the next block. Raises any error of its code, including SyntaxError."""
        code = self._compile(block)
        if code is None:
            return  # only comments: the last statement so far stays the last one
        body, last = code
        self.value = None
        _exec(body, self.namespace)
        if last is not None:
            self.value = _eval(last, self.namespace)

    def show(self) -> None:
        """Print the value of the last expression, as a notebook does."""
        if self.value is not None:
            text = _repr(self.value)
            if sys.stdout is not None:
                sys.stdout.write(text + "\n")
        self.value = None

    def _compile(self, block: str) -> tuple[CodeType, CodeType | None] | None:
        """Return the compiled statements and the final expression, or None without statements."""
        first = self._lines == 0
        block = block.replace("\r\n", "\n").replace("\r", "\n")
        self._source += block if first else "\n" + block
        linecache.cache[self.name] = (
            len(self._source),
            None,
            self._source.splitlines(keepends=True),
            self.name,
        )
        tree = _compile("\n" * self._lines + block, self.name, "exec", ast.PyCF_ONLY_AST)
        self._lines += block.count("\n") + 1
        if not tree.body:
            return None
        last = None
        if isinstance(tree.body[-1], ast.Expr):
            expression = tree.body.pop()
            last = _compile(ast.Expression(expression.value), self.name, "eval")  # type: ignore[attr-defined]
        if not first and tree.body and is_string(tree.body[0]):
            del tree.body[0]  # the compiler would make it the docstring of the script
        return _compile(tree, self.name, "exec"), last

    def report(self, error: BaseException, stream: TextIO) -> None:
        """Write the traceback of ``error`` without the frames of this module."""
        frames: TracebackType | None = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != self.name:
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames, file=stream)


def is_string(statement: ast.stmt) -> bool:
    """Return whether a statement is a bare string, like a docstring."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def separable(blocks: list[str]) -> bool:
    """Return whether running ``blocks`` one by one is the same as running them joined by newlines.

    Each block and the joined source must compile. Then the tokens of the whole are those of the blocks in
    order, and no statement spans two blocks. The remaining exceptions are constructs whose meaning depends on
    the whole file.
    """
    try:
        trees = [ast.parse(block) for block in blocks]
        compile("\n".join(blocks), "<whole>", "exec", dont_inherit=True)
        for block in blocks:
            compile(block, "<block>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        return False
    bodies = [tree.body for tree in trees]
    # A lone string at the start is the docstring of the whole, but the displayed value of its block.
    first = next((body for body in bodies if body), [])
    if len(first) == 1 and is_string(first[0]):
        return False
    if first is not bodies[0] and first and is_string(first[0]):
        return False
    return not any(_depends_on_file(node) for tree in trees for node in ast.walk(tree))


def _depends_on_file(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__"
    if isinstance(node, ast.Compare):
        # Equal constants in one file are one object; in two blocks they are two.
        operands = [node.left, *node.comparators]
        singleton = any(isinstance(o, ast.Constant) and o.value in (None, True, False, ...) for o in operands)
        return any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops) and not singleton
    return isinstance(node, ast.Name) and node.id == "id"
