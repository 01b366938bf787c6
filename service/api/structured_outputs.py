"""Fields that constrain the text of a reply: ``response_format``, and those of vLLM and llama.cpp.

All of them become one `Structure`, which every engine enforces while it samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from service.api.tools.definitions import ResponseFormat
from service.api.validation import Ignored, RequestBody, RequestModel, invalid, only
from service.common.json import compile_schema
from service.engines.base import StructureKind

Definition = Annotated[str, Field(max_length=100_000)]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024)]
Schema = dict[str, object] | Definition | bool
_SPECIAL: Final = re.compile(r"[\\.+*?()|\[\]{}^$]")
"""Characters with a meaning in the regular expressions of every engine."""


@dataclass(frozen=True, slots=True)
class Structure:
    """The constraint on a reply."""

    kind: StructureKind
    text: str
    """The definition: a JSON schema, a regular expression or a grammar."""
    param: str
    """Path of the request's field."""


class StructuredOutputs(RequestModel):
    """vLLM's ``structured_outputs``. At most one constraint may be set."""

    json_: Schema | None = Field(default=None, alias="json")
    """JSON schema of the reply, as an object or as text."""
    json_object: bool | None = None
    """True for any JSON object."""
    regex: Definition | None = None
    """Regular expression that the whole reply must match, without look-around and back references."""
    choice: Choices | None = None
    """The reply is one of these texts."""
    grammar: Definition | None = None
    """Context-free grammar of the reply, in GBNF or Lark."""
    structural_tag: Annotated[object, only("")] = None
    disable_any_whitespace: Annotated[object, Ignored(True)] = None
    """JSON replies are always on one line."""
    disable_additional_properties: Annotated[object, only(False)] = None
    whitespace_pattern: Annotated[object, Ignored("")] = None

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.json_ is not None:
            schema_text(self.json_, ".json")
        if len(given := [structure.param for structure in self.structures("")]) > 1:
            raise invalid(f"it can't be combined with '{given[0].lstrip('.')}'", given[1])
        return self

    def structures(self, at: str) -> Iterator[Structure]:
        """Yield the constraints that are set; ``at`` is the path of this object."""
        if self.json_ is not None:
            yield Structure("json_schema", schema_text(self.json_, ""), f"{at}.json")
        if self.json_object:
            yield Structure("json_schema", '{"type": "object"}', f"{at}.json_object")
        if self.regex:
            yield Structure("regex", self.regex, f"{at}.regex")
        if self.choice is not None:
            yield Structure("regex", one_of(self.choice), f"{at}.choice")
        if self.grammar:
            yield Structure("grammar", self.grammar, f"{at}.grammar")


class StructuredRequest(RequestBody):
    """Fields of a request that constrain the text of its reply. At most one of them may be set."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    """vLLM's constraints on the reply, such as ``{"regex": "[0-9]{4}"}``."""
    guided_json: Schema | None = None
    """Older name of ``structured_outputs.json``; the next three are older names too."""
    guided_regex: Definition | None = None
    guided_choice: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, max_length=1024)
    guided_grammar: Definition | None = None
    grammar: Definition | None = None
    """llama.cpp's name of ``structured_outputs.grammar``."""
    json_schema_: Schema | None = Field(default=None, alias="json_schema")
    """llama.cpp's name of ``structured_outputs.json``."""
    guided_decoding_backend: Annotated[object, Ignored()] = None
    guided_whitespace_pattern: Annotated[object, Ignored("")] = None

    @model_validator(mode="after")
    def _one_structure(self) -> Self:
        for name in ("guided_json", "json_schema_"):
            if schema := getattr(self, name):
                schema_text(schema, f".{name.rstrip('_')}")
        if len(given := [structure.param for structure in self._structures()]) > 1:
            raise invalid(f"it can't be combined with '{given[0]}'", f".{given[1]}")
        return self

    @cached_property
    def structure(self) -> Structure | None:
        """The constraint on the reply; None for free text."""
        return next(self._structures(), None)

    def _structures(self) -> Iterator[Structure]:
        if self.response_format is not None and (schema := self.response_format.schema_text) is not None:
            yield Structure("json_schema", schema, "response_format")
        if self.structured_outputs is not None:
            yield from self.structured_outputs.structures("structured_outputs")
        for name in ("guided_json", "json_schema_"):
            if schema := getattr(self, name):
                yield Structure("json_schema", schema_text(schema, ""), name.rstrip("_"))
        if self.guided_regex:
            yield Structure("regex", self.guided_regex, "guided_regex")
        if self.guided_choice:
            yield Structure("regex", one_of(self.guided_choice), "guided_choice")
        for name in ("guided_grammar", "grammar"):
            if grammar := getattr(self, name):
                yield Structure("grammar", grammar, name)


def one_of(texts: list[str]) -> str:
    """Return a regular expression that matches exactly ``texts``."""
    return "|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in texts)


def schema_text(schema: Schema, at: str) -> str:
    """Return a JSON schema, given as an object or as text, as text.

    Raises:
        PydanticCustomError: it is not a usable JSON schema; ``at`` is its path.
    """
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(parsed, dict | bool):
            raise ValueError("it must be an object")
        compile_schema(parsed)
    except ValueError as error:
        raise invalid(f"it is not a usable JSON schema: {error}", at) from None
    return json.dumps(parsed)
