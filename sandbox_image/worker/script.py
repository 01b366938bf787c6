"""Scripts: compile and run blocks in a namespace, as a notebook does."""

from __future__ import annotations

import ast
import linecache
import re
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from types import CodeType, TracebackType
from typing import Any, TextIO

from . import tools

# Code may replace these in ``builtins``. Running its next block must not depend on them.
_exec, _eval, _repr, _isinstance, _dict = exec, eval, repr, isinstance, dict
_compile = partial(compile, dont_inherit=True)  # without this module's own "from __future__"


_TOOLS = tools.__file__


class NotSeparableError(Exception):
    """Running this block alone could differ from running the whole script. Nothing of it has run."""


class Script:
    """The blocks of one flush, run in order in one namespace as if they were one file.

    Line numbers continue from block to block, so that a traceback is the same whether the blocks run one by
    one or joined by newlines.
    """

    def __init__(self, name: str, namespace: dict[str, Any]) -> None:
        self.name = name
        self.namespace = namespace
        # As in the main module of a new interpreter. Otherwise a compiled script would create it at its start
        # if any of its blocks, even one that never runs, annotates a variable.
        namespace.setdefault("__annotations__", {})
        self.value: object = None
        """Value of the last statement so far if it is an expression, else None."""
        self._source = ""
        self._lines = 0
        self._checker = SeparabilityChecker()

    def run(self, block: str, *, alone: bool = False) -> None:
        """Run the next block. Raises any error of its code, including SyntaxError.

        Args:
            alone: the block may be one of several.

        Raises:
            NotSeparableError: ``alone`` is set, and the block must run together with the others.
        """
        code = self._compile(block, alone)
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

    def _compile(self, block: str, alone: bool) -> tuple[CodeType, CodeType | None] | None:
        """Return the compiled statements and the final expression, or None without statements."""
        first = self._lines == 0
        block = block.replace("\r\n", "\n").replace("\r", "\n")
        self._source += block if first else "\n" + block
        # With a newline at the end, a traceback looks the same whether a block follows or not.
        lines = (self._source + "\n").splitlines(keepends=True)
        if not _isinstance(linecache.cache, _dict):
            linecache.cache = {}
        linecache.cache[self.name] = (len(self._source), None, lines, self.name)
        try:
            tree = _compile("\n" * self._lines + block, self.name, "exec", flags=ast.PyCF_ONLY_AST)
            if alone and not self._checker.accepts(tree, block):  # type: ignore[arg-type]
                raise NotSeparableError
            self._lines += block.count("\n") + 1
            if not tree.body:
                return None
            last = None
            if _isinstance(tree.body[-1], ast.Expr):
                expression = tree.body.pop()
                last = _compile(ast.Expression(expression.value), self.name, "eval")  # type: ignore[attr-defined]
            if not first and tree.body and is_string(tree.body[0]):
                del tree.body[0]  # the compiler would make it the docstring of the script
            return _compile(tree, self.name, "exec"), last
        except _COMPILE_ERRORS as error:
            if alone:
                raise NotSeparableError from error
            raise

    def report(self, error: BaseException, stream: TextIO) -> None:
        """Write the traceback of ``error`` without the frames of this package."""
        frames: TracebackType | None = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != self.name:
            frames = frames.tb_next
        frame = frames
        while frame is not None and frame.tb_next is not None:
            if frame.tb_next.tb_frame.f_code.co_filename == _TOOLS:
                frame.tb_next = None  # a call of a tool
            frame = frame.tb_next
        traceback.print_exception(type(error), error, frames, file=stream)


def is_string(statement: ast.stmt) -> bool:
    """Return whether a statement is a bare string, like a docstring."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def runs_one_by_one(blocks: list[str]) -> bool:
    """Return whether ``blocks`` compile alone and may run one by one; see ``SeparabilityChecker``."""
    checker = SeparabilityChecker()
    try:
        for block in blocks:
            tree = ast.parse(block)
            compile(tree, "<block>", "exec", dont_inherit=True)
            if not checker.accepts(tree, block):
                return False
    except _COMPILE_ERRORS:
        return False
    return True


def compiles_alone(blocks: list[str]) -> bool:
    """Return whether each of ``blocks`` compiles alone and none changes how the others compile."""
    try:
        for block in blocks:
            tree = ast.parse("\n" + block)  # after a newline, a byte order mark is an error
            compile(tree, "<block>", "exec", dont_inherit=True)
            if _depends_on_file(tree, block):
                return False
    except _COMPILE_ERRORS:
        return False
    return True


class SeparabilityChecker:
    """Decides, block by block, whether running blocks one by one is the same as running them joined.

    If each block compiles alone, the tokens of the whole are those of the blocks in order, and no statement
    spans two blocks. The remaining exceptions are constructs whose meaning depends on the whole file.
    """

    def __init__(self) -> None:
        self._blocks = 0
        self._has_statements = False
        self._only_string = False
        """The first statement is a string and so far the only one."""
        self._looks_at_names = False

    def accepts(self, tree: ast.Module, block: str) -> bool:
        """Return whether the next block can run on its own."""
        first_block, self._blocks = self._blocks == 0, self._blocks + 1
        # A lone string at the start is the docstring of the whole, but the displayed value of its block.
        if tree.body:
            if self._only_string:
                return False
            if not self._has_statements and is_string(tree.body[0]):
                if not first_block:
                    return False
                self._only_string = len(tree.body) == 1
            self._has_statements = True
        # A file with annotations creates __annotations__ before its first statement, and code may delete it.
        annotates = any(isinstance(statement, ast.AnnAssign) for statement in _module_level(tree))
        if annotates and self._looks_at_names:
            return False
        self._looks_at_names |= _LOOKS_AT_NAMES.search(block) is not None
        return not _depends_on_file(tree, block)


_COMPILE_ERRORS = SyntaxError, ValueError, MemoryError, RecursionError, OverflowError
_LOOKS_AT_NAMES = re.compile(r"__annotations__|\b(?:globals|locals|vars|dir|__dict__|exec|eval)\b")
_MAY_DEPEND = re.compile(
    r"\b(?:is|id|global|__future__|f_code|f_lasti|tb_lasti|getsource\w*|findsource|linecache|settrace|gettrace"
    r"|setprofile|getprofile|monitoring)\b"
)
_LOOKS_AT_CODE = {
    *("f_code", "f_lasti", "tb_lasti", "getsource", "getsourcelines", "findsource", "linecache"),
    *("settrace", "gettrace", "setprofile", "getprofile", "monitoring"),
}
"""Names with which code can see that a module was compiled in parts, or the functions that run it."""


def _depends_on_file(tree: ast.Module, block: str) -> bool:
    if _MAY_DEPEND.search(block) is None:  # walking the tree of a long list takes longer than compiling it
        return False
    if any(isinstance(node, ast.Global) for node in _module_level(tree)):
        return True  # an error if an earlier block uses the name
    return any(_node_depends_on_file(node) for node in ast.walk(tree))


def _module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run in the scope of the module."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            pending += [
                child
                for child in ast.iter_child_nodes(node)
                if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)
            ]


def _node_depends_on_file(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__" or any(alias.name in _LOOKS_AT_CODE for alias in node.names)
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "linecache" for alias in node.names)
    if isinstance(node, ast.Compare):
        # Equal constants in one file are one object; in two blocks they are two.
        operands = [node.left, *node.comparators]
        singleton = any(isinstance(o, ast.Constant) and o.value in (None, True, False, ...) for o in operands)
        return any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops) and not singleton
    if isinstance(node, ast.Attribute):
        return node.attr in _LOOKS_AT_CODE
    return isinstance(node, ast.Name) and (node.id == "id" or node.id in _LOOKS_AT_CODE)
