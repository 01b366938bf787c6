"""The tokenizer of a Hugging Face checkpoint behind the engine's ``Tokenizer`` protocol."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from service.engines.base import EngineError
from service.engines.segments import SegmentEncoder, encode

_TEMPLATE_INPUTS = frozenset({"tools", "documents"})
_RESERVED = (
    frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - _TEMPLATE_INPUTS
)


class HFTokenizer:
    """Implements ``service.engines.base.Tokenizer`` on a fast tokenizer.

    Raises:
        EngineError: the checkpoint has no fast tokenizer (``tokenizer.json``).
    """

    def __init__(self, model: str) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise EngineError(f"model {model!r} has no fast tokenizer: add a tokenizer.json to it")
        self.backend: tokenizers.Tokenizer = backend
        self._segments = SegmentEncoder(backend)

    @cached_property
    def _literal_backend(self) -> tokenizers.Tokenizer:
        """A copy that reads control tokens as ordinary text.

        ``split_special_tokens`` alone is not enough: Qwen3 does not flag ``<tool_call>`` or ``<think>`` as
        special, so they would still be matched. Here every added token counts as special, save runs of
        white space, which some vocabularies add and which control nothing.
        """
        state = json.loads(self.backend.to_str())
        for token in state["added_tokens"]:
            token["special"] = not token["content"].isspace()
        literal = tokenizers.Tokenizer.from_str(json.dumps(state))
        literal.encode_special_tokens = True
        return literal

    @property
    def eos_token_id(self) -> int | None:
        return cast("int | None", self._tokenizer.eos_token_id)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id, added tokens included."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str, *, allow_special: bool) -> list[int]:
        return self._segments.encode(text) if allow_special else encode(self._literal_backend, text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def render_chat(
        self,
        messages: Sequence[dict[str, object]],
        *,
        template_kwargs: dict[str, object] | None = None,
        continue_final: bool = False,
    ) -> list[int]:
        """Render and encode. A control token spelled in a message is one: the instruction names the marker.

        Raises:
            EngineError: no chat template, a reserved name in ``template_kwargs``, or the template refused.
        """
        extra: dict[str, Any] = dict(template_kwargs or {})
        if reserved := sorted(_RESERVED & extra.keys()):
            raise EngineError(f"chat template arguments: {reserved[0]!r} is reserved, leave it out")
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not continue_final,
                continue_final_message=continue_final,
                **extra,
            )
        except Exception as error:  # whatever a template raises
            raise EngineError(f"the chat template failed: {error}") from error
        return self.encode(text, allow_special=True)
