from __future__ import annotations

import io
import linecache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_image.worker.script import NotSeparableError, Script, compiles_alone


def run(*blocks: str) -> tuple[dict[str, Any], object]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    script = Script("<call 1>", namespace)
    for block in blocks:
        script.run(block)
    return namespace, script.value


def separable(blocks: list[str]) -> bool:
    """Return whether the checks of ``Script`` let all blocks run alone, without running them."""
    script = Script("<call 1>", {})
    try:
        for block in blocks:
            script._compile(block, alone=True)
    except NotSeparableError:
        return False
    return compiles_alone(blocks)


@pytest.mark.parametrize(
    ("blocks", "value"),
    [
        (["1 + 1"], 2),
        (["a = 1", "a"], 1),
        (["a = 1\na", "b = 2"], None),
        (["1 + 1", "# only a comment", ""], 2),
        (["1 + 1", "pass"], None),
        (["'text'"], "text"),
        (["1;"], 1),
        (["# only a comment"], None),
        ([""], None),
        (["x = 5\r\nx\r\n"], 5),
    ],
)
def test_value_of_the_last_expression(blocks: list[str], value: object) -> None:
    assert run(*blocks)[1] == value


def test_only_the_first_block_sets_the_docstring() -> None:
    assert run('"""first"""\nx = 1', '"""second"""\ny = 1')[0]["__doc__"] == "first"


def test_show_prints_the_repr_once(capsys: pytest.CaptureFixture[str]) -> None:
    script = Script("<call 1>", {})
    script.run("'a'")
    script.show()
    script.show()
    assert capsys.readouterr().out == "'a'\n"


def test_releases_a_value_when_the_next_statement_starts(capsys: pytest.CaptureFixture[str]) -> None:
    script = Script("<call 1>", {})
    script.run("class D:\n    def __del__(self): print('gone')\nD()")
    script.run("# nothing yet")
    assert capsys.readouterr().out == ""
    script.run("print('next')")
    assert capsys.readouterr().out == "gone\nnext\n"


@given(
    st.lists(
        st.sampled_from(["", "\n", "# only a comment", "a = 1\r\n", "if True:\n\n    a = 2"]), min_size=1
    )
)
def test_blocks_have_the_same_source_as_the_whole(blocks: list[str]) -> None:
    sources = []
    for parts in (blocks, ["\n".join(blocks)]):
        script = Script("<call 8>", {})
        for part in parts:
            script.run(part)
        sources.append(linecache.getlines("<call 8>"))
    assert sources[0] == sources[1]


def test_line_numbers_continue_and_tracebacks_show_the_source() -> None:
    script = Script("<call 7>", {})
    script.run("def f():\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        script.run("x = 1\nf()")
    stream = io.StringIO()
    script.report(caught.value, stream)
    text = stream.getvalue()
    assert 'File "<call 7>", line 5, in <module>' in text
    assert 'File "<call 7>", line 2, in f' in text
    assert "return 1 / 0" in text
    assert "script.py" not in text
    assert text.splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "blocks",
    [
        ["a = 1", "a"],
        ["def f():\n    pass", "f()"],
        ["", "1"],
        ["x is None", "y is not True"],
        ["# é\\", "1"],
        ["x: int = 1", "y: int = 2"],
        ["def f():\n    global a\n    a = 1", "f()"],
        ["'text'"],
        ["# is id global", "print('is id global')"],
    ],
)
def test_separable_blocks(blocks: list[str]) -> None:
    assert separable(blocks)


@pytest.mark.parametrize(
    "blocks",
    [
        ["a = 1", "a +"],
        ["for i in x:", "    pass"],
        ["if a:\n    pass", "else:\n    pass"],
        ["x = 1 + \\", "2"],
        ["x = '''", "'''"],
        ["x = (", ")"],
        ["from __future__ import annotations", "a"],
        ["a", "from __future__ import annotations"],
        ["x = 1", "global x"],
        ["'lone'", "print(__doc__)"],
        ["# nothing", "'lone'\n1"],
        ["a = 1.5", "a is b"],
        ["a", "id(b)"],
        ["a", "return 1"],
        ["a", "\ufeffb"],
        ["a", "b\0"],
        ["a", "(" * 3000],
        ["'\ud800'", "a"],
        ["if True:\n    global x", "x"],
        ["print(dir())", "x: int = 1"],
        ["x: int = 1", "del __annotations__", "y: int = 2"],
        ["import sys\nsys._getframe().f_code", "1"],
        ["from inspect import getsource", "1"],
        ["sys.settrace(print)", "1"],
    ],
)
def test_inseparable_blocks(blocks: list[str]) -> None:
    assert not separable(blocks)


@pytest.mark.parametrize(
    "blocks", [["a +"], ["a", "b +"], ["global x"], ["\ufeffb"], ["from __future__ import annotations"]]
)
def test_blocks_that_never_ran_must_not_change_the_script(blocks: list[str]) -> None:
    assert not compiles_alone(blocks)


def test_code_is_compiled_without_the_future_imports_of_this_program() -> None:
    assert run("def f(x: int): pass")[0]["f"].__annotations__ == {"x": int}


def test_replacing_the_cache_of_source_lines_breaks_nothing() -> None:
    script, cache = Script("<call 1>", {}), linecache.cache
    try:
        script.run("import linecache\nlinecache.cache = None")
        script.run("1")
    finally:
        linecache.cache = cache
    assert script.value == 1


LINES = st.sampled_from(
    [
        "a = 1",
        "if a:",
        "    b = 2",
        "else:",
        "b = (a,",
        ")",
        "'''",
        "x = \\",
        "a",
        "@a",
        "def f():",
        "    return 3",
        "try:",
        "except E:",
        "",
        "# c",
    ]
)


@given(st.lists(st.lists(LINES, max_size=4).map("\n".join), min_size=1, max_size=4))
def test_separable_blocks_have_the_statements_of_the_whole(blocks: list[str]) -> None:
    import ast

    if not separable(blocks):
        return
    whole = [ast.dump(node) for node in ast.parse("\n".join(blocks)).body]
    assert whole == [ast.dump(node) for block in blocks for node in ast.parse(block).body]
