"""Recorded episodes in the playground's format, in a link or in a standalone HTML page.

The format is defined in ``static/episode.js``: events of [milliseconds since the start, kind, value].
"""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from service.deferral.scanner import BlockClosed, FenceScanner
from service.playground.files import INDEX, STATIC, TRUSTED_TYPES

VERSION: Final = 1
_CHUNK_MS: Final = 50
Event = list[Any]


def episode_record(
    *,
    model: str,
    question: str,
    text: str,
    tools: Sequence[Mapping[str, Any]],
    began_at: float,
    seconds: float,
    finish: str,
    marker: str = "<tool_call>",
) -> dict[str, Any]:
    """Return an episode that the playground can replay.

    The time of each word is unknown. Text is spread evenly between the known times at which blocks were
    closed and flushed.

    Args:
        model: name of the model.
        question: the user's question.
        text: the whole response, including observations.
        tools: its flushes in the form of the API's ``executed_tools``.
        began_at: Unix time of the start.
        seconds: duration of the episode.
        finish: ``stop`` or ``length``.
        marker: the execute marker.
    """
    messages = [{"role": "user", "content": question}]
    return {
        "v": VERSION,
        "request": {"model": model, "messages": messages},
        "created": round(began_at * 1000),
        "began": began_at,
        "events": list(_events(text, tools, began_at, seconds * 1000, marker)),
        "ended": seconds * 1000,
        "finish": finish,
        "usage": None,
    }


def _events(
    text: str, tools: Sequence[Mapping[str, Any]], began_at: float, end_ms: float, marker: str
) -> Iterator[Event]:
    def since(unix: float) -> float:
        return round(max(unix - began_at, 0) * 1000, 1)

    at, now = 0, 0.0
    for tool in tools:
        observation = f"\nCode execution result: {tool['output']}\n</tool_call>\n"
        flushed = text.find(observation, at)
        turn_end = len(text) if flushed < 0 else flushed
        turn = text[at:turn_end]
        ends = [event.end for event in FenceScanner(marker).feed(turn) if isinstance(event, BlockClosed)]
        done = 0
        for count, (block, end) in enumerate(zip(tool["blocks"], ends, strict=False), start=1):
            yield from _spread(turn[done:end], now, since(block["invoked_at"]))
            done, now = end, since(block["invoked_at"])
            yield [now, "b", {**tool, "status": "pending", "blocks": list(tool["blocks"][:count])}]
        asked = since(tool["flushed_at"])
        yield from _spread(turn[done:], now, asked)
        now = round(asked + tool["waited_ms"], 1)
        yield [asked, "b", {**tool, "status": "running"}]
        yield [now, "b", dict(tool)]
        if flushed >= 0:
            yield [now, "o", observation]
            turn_end += len(observation)
        at = turn_end
    yield from _spread(text[at:], now, end_ms)


def _spread(text: str, start: float, end: float) -> Iterator[Event]:
    """Yield ``text`` in pieces from ``start`` to ``end``, in ms."""
    pieces = max(min(int((end - start) / _CHUNK_MS), len(text)), 1)
    for piece in range(pieces):
        part = text[len(text) * piece // pieces : len(text) * (piece + 1) // pieces]
        if part:
            yield [round(start + (end - start) * (piece + 1) / pieces, 1), "t", part]


def fragment(episode: Mapping[str, Any]) -> str:
    """Return ``#e=...``, the fragment of a URL with the episode: JSON, deflated, base64url."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(json.dumps(episode, separators=(",", ":")).encode()) + packer.flush()
    return "#e=" + base64.urlsafe_b64encode(packed).decode().rstrip("=")


_IMPORT: Final = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_STYLES: Final = ("style.css", "answer.css")
_LIBRARIES: Final = (
    "vendor/markdown-it.umd.min.js",
    "vendor/purify.min.js",
    "vendor/highlight.min.js",
    "vendor/katex.min.js",
)


def standalone(episode: Mapping[str, Any]) -> str:
    """Return an HTML page that contains ``episode`` and loads nothing. Formulas are MathML, without fonts."""
    # After "<!--" and "<script" the HTML parser would skip the end tag of the script.
    scripts = [text.replace("<!--", r"\x3c!--") for text in (*map(_text, _LIBRARIES), bundle("main.js"))]
    style = "".join(map(_text, _STYLES))
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_source, scripts))}; style-src {_source(style)}; "
        + TRUSTED_TYPES
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>\n'
    page = _text(INDEX)
    page = page.replace(
        "<html ", f'<html data-standalone data-episode="{html.escape(fragment(episode))}" ', 1
    )
    page = re.sub(r'<(?:link|script) [^>]*"playground/[^>]*>(?:</script>)?\n', "", page)
    page = page.replace("</head>", f"{head}</head>", 1)
    *libraries, main = scripts
    tags = "".join(f"<script>{script}</script>\n" for script in libraries)
    return page.replace("</body>", f'{tags}<script type="module">{main}</script>\n</body>', 1)


def bundle(name: str) -> str:
    """Return a JavaScript module joined with everything that it imports, dependencies first.

    The modules share one scope, so their top-level names must be unique.
    """
    parts: dict[str, str] = {}

    def add(name: str) -> None:
        if name in parts:
            return
        source = _text(name)
        for imported in _IMPORT.findall(source):
            add(imported)
        parts[name] = re.sub(r"^export ", "", _IMPORT.sub("", source), flags=re.MULTILINE)

    add(name)
    return "\n".join(parts.values())


def _text(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """Return a CSP source that allows exactly ``text``."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
