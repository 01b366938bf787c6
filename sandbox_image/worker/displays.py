"""Figures and tables of a script, rendered in a fork that ends afterwards.

The fork runs code that the tenant may have replaced, so its output is data without any guarantee. It changes
neither the namespace nor the output of the script.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
from typing import Any

HEADER = struct.Struct("!cI")
PNG, SVG, HTML = b"p", b"s", b"h"
"""Kinds of displays. Each is sent as a ``HEADER`` (kind and size) and its content."""
MEDIA_TYPES = {PNG: "image/png", SVG: "image/svg+xml", HTML: "text/html"}
MAX_DISPLAYS = 16
MAX_BYTES = 8 << 20
"""Largest size of all displays of a flush together."""
_MAX_HTML_BYTES = 256 << 10
_ROWS, _COLUMNS = 60, 30
_DPI = 100

_write = os.write


def is_table(value: object) -> bool:
    """Return whether ``value`` is a pandas data frame."""
    pandas = sys.modules.get("pandas")
    frame = getattr(pandas, "DataFrame", None)
    return isinstance(frame, type) and isinstance(value, frame)


def figures() -> list[Any]:
    """Return the open figures of matplotlib that show anything."""
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    found = []
    with contextlib.suppress(Exception):
        for manager in helpers.Gcf.get_all_fig_managers():  # type: ignore[union-attr]
            figure = manager.canvas.figure
            if figure.get_axes() or figure.texts or figure.images:
                found.append(figure)
    return found


def write_displays(fd: int, value: object, *, svg: bool) -> None:
    """Render the open figures, and ``value`` if it is a table, and write them to ``fd``."""
    room = MAX_BYTES
    for kind, content in _rendered(value, svg=svg):
        room -= len(content)
        if room < 0:
            return
        data = HEADER.pack(kind, len(content)) + content
        while data:
            data = data[_write(fd, data) :]


def _rendered(value: object, *, svg: bool) -> Any:
    if is_table(value):
        with contextlib.suppress(Exception):
            html = value.to_html(max_rows=_ROWS, max_cols=_COLUMNS, border=0)  # type: ignore[attr-defined]
            content = html.encode("utf-8", "backslashreplace")
            if len(content) <= _MAX_HTML_BYTES:
                yield HTML, content
    for figure in figures()[: MAX_DISPLAYS - 1]:
        with contextlib.suppress(Exception):
            yield (SVG if svg else PNG), _render(figure, svg=svg)


def _render(figure: Any, *, svg: bool) -> bytes:
    buffer = io.BytesIO()
    if svg:
        import matplotlib as mpl

        mpl.rcParams["svg.hashsalt"] = "ih-grpo"  # the same figure has the same bytes
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    else:
        figure.savefig(buffer, format="png", bbox_inches="tight", dpi=_DPI)
    return buffer.getvalue()


def parse_displays(data: bytes) -> list[tuple[str, bytes]]:
    """Return the media type and content of each display in ``data``, up to the first invalid one."""
    found: list[tuple[str, bytes]] = []
    while len(data) >= HEADER.size and len(found) < MAX_DISPLAYS:
        kind, size = HEADER.unpack_from(data)
        content = data[HEADER.size : HEADER.size + size]
        if kind not in MEDIA_TYPES or len(content) != size:
            break
        found.append((MEDIA_TYPES[kind], content))
        data = data[HEADER.size + size :]
    return found
