from __future__ import annotations

import io
import linecache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_image.worker.script import Script, separable


def run(*blocks: str) -> tuple[dict[str, Any], object]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    script = Script("<call 1>", namespace)
    for block in blocks:
        script.run(block)
    return namespace, script.value


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
    ],
)
def test_inseparable_blocks(blocks: list[str]) -> None:
    assert not separable(blocks)


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
