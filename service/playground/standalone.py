"""The playground as one HTML file that carries an episode, for looking at it where no server runs."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from service.playground.files import INDEX, STATIC
from service.playground.record import fragment

_IMPORT: Final = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)


def standalone(episode: Mapping[str, Any]) -> str:
    """The page with ``episode`` (as `service.playground.record` makes them) in it. It loads nothing."""
    script, style = bundle("main.js"), (STATIC / "style.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>\n'
    page = (STATIC / INDEX).read_text(encoding="utf-8")
    page = page.replace(
        "<html ", f'<html data-standalone data-episode="{html.escape(fragment(episode))}" ', 1
    )
    page = re.sub(r'<(?:link|script) [^>]*"playground/[^>]*>(?:</script>)?\n', "", page)
    page = page.replace("</head>", f"{head}</head>", 1)
    return page.replace("</body>", f'<script type="module">{script}</script>\n</body>', 1)


def bundle(name: str) -> str:
    """A module and all that it imports as one, each once, what is imported first.

    It joins their text, so no two modules may have a top-level name in common.
    """
    parts: dict[str, str] = {}

    def add(name: str) -> None:
        if name in parts:
            return
        source = (STATIC / name).read_text(encoding="utf-8")
        for imported in _IMPORT.findall(source):
            add(imported)
        parts[name] = re.sub(r"^export ", "", _IMPORT.sub("", source), flags=re.MULTILINE)

    add(name)
    return "\n".join(parts.values())


def _source(text: str) -> str:
    """A CSP source that lets this very text through."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
