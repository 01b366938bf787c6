from __future__ import annotations

import os
import sys
import types

import pytest

from sandbox_image.worker import displays


class Frame:
    """Stands for a data frame."""

    html = "<table>"

    def to_html(self, **options: object) -> str:
        if isinstance(self.html, Exception):
            raise self.html
        return self.html


@pytest.fixture(autouse=True)
def pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pandas")
    module.DataFrame = Frame  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", module)
    monkeypatch.delitem(sys.modules, "matplotlib._pylab_helpers", raising=False)


def rendered(value: object) -> list[tuple[str, bytes]]:
    reader, writer = os.pipe()
    displays.write_displays(writer, value, svg=False)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        return displays.parse_displays(pipe.read())


def test_renders_a_table() -> None:
    assert displays.is_table(Frame())
    assert not displays.is_table(1)
    assert rendered(Frame()) == [("text/html", b"<table>")]
    assert rendered(1) == []


def test_leaves_out_tables_that_fail_or_are_too_large() -> None:
    for html in (ValueError(), "x" * 300_000):
        frame = Frame()
        frame.html = html  # type: ignore[assignment]
        assert rendered(frame) == []


def test_replaced_pandas_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    assert not displays.is_table(Frame())


@pytest.mark.parametrize("data", [b"", b"x", b"p\0\0\0\x09short", b"?\0\0\0\x01x", b"p\xff\xff\xff\xff"])
def test_ignores_invalid_displays(data: bytes) -> None:
    assert displays.parse_displays(data) == []
    valid = displays.HEADER.pack(displays.PNG, 1) + b"1"
    assert displays.parse_displays(valid + data) == [("image/png", b"1")]


def test_number_of_displays_is_bounded() -> None:
    data = (displays.HEADER.pack(displays.PNG, 1) + b"1") * 100
    assert len(displays.parse_displays(data)) == displays.MAX_DISPLAYS
