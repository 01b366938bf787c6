"""A simple tokenizer: one id per character, one id per special token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import cast

from service.deferral.prompt import ControlText, TokenIds

SPECIALS = ("<tool_call>", "</tool_call>", "<|im_end|>")
_FIRST_SPECIAL = 0x110000  # above every Unicode code point
_PATTERN = re.compile("|".join(map(re.escape, SPECIALS)) + "|.", re.DOTALL)


class CharTokenizer:
    """Implements `service.engines.base.Tokenizer`."""

    vocab_size = _FIRST_SPECIAL + len(SPECIALS)

    def encode(self, text: str, *, allow_special: bool) -> list[int]:
        if not allow_special:
            return [ord(char) for char in text]
        return [self.token_id(piece) or ord(piece) for piece in _PATTERN.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(SPECIALS[i - _FIRST_SPECIAL] if i >= _FIRST_SPECIAL else chr(i) for i in ids)

    def token_id(self, token: str) -> int | None:
        return _FIRST_SPECIAL + SPECIALS.index(token) if token in SPECIALS else None

    def render_chat(
        self,
        messages: Sequence[dict[str, object]],
        *,
        template_kwargs: dict[str, object] | None = None,
        continue_final: bool = False,
    ) -> list[int]:
        options = template_kwargs or {}
        ids: list[int] = []
        for tool in cast("list[object]", options.get("tools", [])):
            ids += self.encode(f"function: {json.dumps(tool)}\n", allow_special=False)
        for message in messages:
            ids += self.encode(f"{message['role']}: ", allow_special=False)
            if thought := message.get("reasoning_content"):
                ids += self.encode(f"<think>\n{thought}\n</think>\n\n", allow_special=False)
            content = message["content"]
            for part in [content] if isinstance(content, str) else cast("list[object]", content):
                match part:
                    case TokenIds(sampled):
                        ids += sampled
                    case ControlText(text):
                        ids += self.encode(text, allow_special=True)
                    case _:
                        ids += self.encode(str(part), allow_special=False)
            ids += self.encode("\n", allow_special=False)
            for call in cast("list[object]", message.get("tool_calls", [])):
                ids += self.encode(f"call: {json.dumps(call)}\n", allow_special=False)
        return ids[:-1] if continue_final else ids
