"""Text from a model or from its code, made harmless to a terminal."""

from __future__ import annotations

from typing import Final

# An escape sequence could move the cursor, rewrite what was shown or set the clipboard.
_PICTURES: Final = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_HARMLESS: Final = {**_PICTURES, 0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}


def harmless(text: str) -> str:
    """``text`` with control characters as pictures of themselves; line feeds and tabs stay."""
    return text.translate(_HARMLESS)
