"""Layouts of rows: the columns that hold the question, the gold answer, earlier messages and options.

Accepted for the question, in this order:

- ``prompt`` or ``messages`` as a list of chat messages: a system message and earlier turns are kept, the last
  user message is the question, and an assistant message after it is dropped;
- ``prompt`` as text, as in TRL;
- ``question``, ``problem``, ``query`` or ``input`` as text.

Accepted for the gold answer: ``reward_model.ground_truth`` as in verl, or one of ``answer``,
``ground_truth``, ``final_answer``, ``gold``, ``target``, ``label``, ``answerKey``, ``correct_option``,
``answer_index``, ``solution``. Of a worked solution only the last box counts, or the text after ``####``.

A row with ``options`` or ``choices`` is a multiple-choice problem: the options are added to the question with
letters, an index as the gold answer becomes a letter, and ``context`` or ``passage`` precedes the question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from service.deferral.answer import last_boxed
from trainer.rewards.choice import LETTERS, options_of
from trainer.rewards.scorer import cut_gold

QUESTION_COLUMNS: Final = ("question", "problem", "query", "input")
ANSWER_COLUMNS: Final = (
    "answer", "ground_truth", "final_answer", "gold", "target", "label", "answerKey", "correct_option",
    "answer_index", "solution",
)  # fmt: skip
_CONTEXT_COLUMNS: Final = ("context", "passage")
_LETTER_HINT: Final = "Answer with the letter of the correct option."
_ROLES: Final = frozenset({"system", "user", "assistant"})


class LayoutError(ValueError):
    """A row does not fit; the message names the column and gives a hint."""


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row in the trainer's own terms."""

    question: str
    answer: str
    """The gold answer; empty if the row has none."""
    context: tuple[Mapping[str, str], ...] = ()
    """Messages before the question, ``role`` and ``content`` each: a system message, examples."""


def read_row(row: Any) -> ReadRow:
    """Read one row of a data set.

    Raises:
        LayoutError: it is not an object, a column is missing, or a value has the wrong type.
    """
    if not isinstance(row, Mapping):
        raise LayoutError(f"must be an object with question and answer, got {type(row).__name__}")
    context, question = _question(row)
    options = options_of({"options": row.get("options"), "choices": row.get("choices")})
    answer = _answer(row, options)
    if options:
        question = _with_options(question, options)
    return ReadRow(question, answer, context)


def _question(row: Mapping[str, Any]) -> tuple[tuple[Mapping[str, str], ...], str]:
    for name in ("prompt", "messages"):
        value = row.get(name)
        if isinstance(value, str) and name == "prompt":
            return (), _with_passage(row, _text(name, value))
        if value is not None and not isinstance(value, str):
            return _conversation(name, value)
    for name in QUESTION_COLUMNS:
        if row.get(name) is not None:
            return (), _with_passage(row, _text(name, row[name]))
    raise LayoutError(
        f"it has no question (or problem, prompt, messages, query, input), but {_columns(row)}: rename the "
        f"column"
    )


def _conversation(name: str, value: Any) -> tuple[tuple[Mapping[str, str], ...], str]:
    if not isinstance(value, Sequence) or not all(isinstance(message, Mapping) for message in value):
        raise LayoutError(f"{name}: must be text or a list of messages with role and content")
    messages = [_message(f"{name}.{index}", message) for index, message in enumerate(value)]
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise LayoutError(f"{name}: must contain a user message")
    last = users[-1]
    if len(messages) > last + 2:
        raise LayoutError(f"{name}: more than one message follows the last user message")
    question = messages[last]["content"].strip()
    if not question:
        raise LayoutError(f"{name}.{last}.content: must not be empty")
    return tuple(messages[:last]), question


def _message(where: str, message: Mapping[str, Any]) -> Mapping[str, str]:
    role, content = message.get("role", "user"), message.get("content")
    if role not in _ROLES:
        raise LayoutError(f"{where}.role: must be system, user or assistant, got {role!r}")
    if isinstance(content, Sequence) and not isinstance(content, str):  # parts, as in OpenAI's API
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        content = "".join(part for part in parts if part) if all(isinstance(p, str) for p in parts) else None
    if not isinstance(content, str):
        raise LayoutError(f"{where}.content: must be text, got {message.get('content')!r}")
    return {"role": role, "content": content}


def _answer(row: Mapping[str, Any], options: Sequence[str]) -> str:
    judged = row.get("reward_model")
    if isinstance(judged, Mapping) and "ground_truth" in judged:
        return _gold("reward_model.ground_truth", judged["ground_truth"], options)
    for name in ANSWER_COLUMNS:
        if row.get(name) is not None:
            return _gold(name, row[name], options)
    if any(name in row for name in ANSWER_COLUMNS):
        return ""  # null
    raise LayoutError(
        f"it has no answer (or ground_truth, final_answer, target, solution, reward_model.ground_truth), but "
        f"{_columns(row)}: rename the column"
    )


def _gold(name: str, value: Any, options: Sequence[str]) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):  # OlympiadBench and AGIEval: a list of one
        if len(value) != 1:
            raise LayoutError(f"{name}: must be one answer, got a list of {len(value)}")
        value = value[0]
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int) and options:
        if not 0 <= value < min(len(options), len(LETTERS)):
            raise LayoutError(f"{name}: must be the index of one of {len(options)} options, got {value}")
        return LETTERS[value]
    if isinstance(value, (float, Decimal)):
        return "" if math.isnan(value) else _plain_number(value)
    if isinstance(value, int):
        return str(value)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise LayoutError(f"{name}: must be text or a number, got {value!r}")
    if "boxed" in value and (boxed := last_boxed(value)) is not None:
        return boxed
    return cut_gold(value)


def _plain_number(value: float | Decimal) -> str:
    """A decimal without an exponent."""
    if math.isinf(value):
        return r"\infty" if value > 0 else r"-\infty"
    return f"{Decimal(str(value)):f}"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise LayoutError(f"{name}: must be text, got {value!r}")
    if not value.strip():
        raise LayoutError(f"{name}: must not be empty")
    return value.strip()


def _with_passage(row: Mapping[str, Any], question: str) -> str:
    """The question after its passage, for rows that are multiple-choice problems about a text."""
    if not any(row.get(name) for name in ("options", "choices")):
        return question
    passages = [row[name].strip() for name in _CONTEXT_COLUMNS if isinstance(row.get(name), str)]
    return "\n\n".join([*filter(None, passages), question])


def _with_options(question: str, options: Sequence[str]) -> str:
    if len(options) > len(LETTERS):
        raise LayoutError(f"options: at most {len(LETTERS)} are supported, got {len(options)}")
    if all(option.strip() in question for option in options):
        return f"{question}\n\n{_LETTER_HINT}"  # AGIEval writes them into the question
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question}\n\n{listed}\n\n{_LETTER_HINT}"


def _columns(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "nothing"
