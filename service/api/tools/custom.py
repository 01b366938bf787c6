"""Custom tools, which take free text instead of JSON arguments.

The model calls such a tool as a function with the single argument ``input``. Clients get its text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.api.validation import Lenient, RequestModel, invalid
from service.common.json import Json, compile_schema


class CustomGrammar(RequestModel):
    """The language of a tool's input."""

    syntax: Literal["regex", "lark"]
    definition: str = Field(max_length=100_000)

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.syntax == "regex":
            try:
                compile_schema(input_schema(self))
            except ValueError as error:
                raise invalid(f"it is not a usable regular expression: {error}", ".definition") from None
        return self


class _TextOnly(Lenient):
    """Reports grammars that are only shown to the model, because they can't be enforced inside of JSON."""

    def ignored_in(self, raw: object) -> Iterator[str]:
        if isinstance(raw, dict) and isinstance(grammar := raw.get("grammar", raw), dict):
            yield from [""] if grammar.get("syntax") == "lark" else []


class CustomFormat(RequestModel):
    """Form of a tool's input. A grammar is nested in chat completions and not in the Responses API."""

    type: Literal["text", "grammar"] = "text"
    grammar: CustomGrammar | None = None
    syntax: Literal["regex", "lark"] | None = None
    definition: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.type == "grammar" and self.grammar is None and (not self.syntax or self.definition is None):
            raise invalid("a format of type 'grammar' needs 'syntax' and 'definition'")
        return self

    @property
    def rules(self) -> CustomGrammar | None:
        """The grammar; None for free text."""
        if self.type == "text":
            return None
        return self.grammar or CustomGrammar(syntax=self.syntax or "lark", definition=self.definition or "")


class CustomFields(RequestModel):
    """Name and description of a custom tool."""

    name: str
    description: str | None = None
    format: Annotated[CustomFormat, _TextOnly()] = CustomFormat()

    def as_function(self) -> Json:
        """Return the function that the model calls."""
        rules, about = self.format.rules, self.description or ""
        if rules is not None:
            kind = "regular expression" if rules.syntax == "regex" else "Lark grammar"
            about = f"{about}\n\nThe input must match this {kind}:\n{rules.definition}".strip()
        return {"name": self.name, "description": about, "parameters": input_schema(rules)}


def input_schema(rules: CustomGrammar | None) -> dict[str, object]:
    """Return the JSON schema of the arguments of the function."""
    text: dict[str, object] = {"type": "string"}
    if rules is not None and rules.syntax == "regex":
        text["pattern"] = f"^(?:{rules.definition})$"
    return {
        "type": "object",
        "properties": {"input": text},
        "required": ["input"],
        "additionalProperties": False,
    }


def input_of(arguments: str) -> str:
    """Return the input in the arguments of a call; the arguments themselves if they are malformed."""
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return arguments
    text = parsed.get("input") if isinstance(parsed, dict) else None
    return text if isinstance(text, str) else arguments
