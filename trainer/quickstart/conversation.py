"""Conversations: earlier turns, questions about the last answer, and system messages."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Final

from trainer.quickstart.ordinary import HONEST_REPLY, ordinary, ordinary_text
from trainer.quickstart.phrasing import ask_for, dress, order
from trainer.quickstart.problems import everyday_question
from trainer.quickstart.problems.base import CALCULATE, CLOSING, PlanBlock, PracticeProblem
from trainer.quickstart.problems.expressions import number
from trainer.quickstart.vocabulary import words

_SYSTEM: Final = (
    "You are a helpful assistant.", "You are a helpful, honest and concise assistant.", "Answer briefly.",
    "You are a calculator.",
    "You are a maths tutor.", "Be polite.", "You are an AI.", "Always answer in English.", "Today is Monday.",
    "Please reason step by step, and put your final answer within \\boxed{}.",
)  # fmt: skip
_THAT: Final = (
    "that",
    "that",
    "it",
    "the result",
    "the answer",
    "this",
    "the last number",
    "that number",
    "the last result",
)


def follow_up(rng: Random, last: str, earlier: tuple[tuple[str, str], ...]) -> PracticeProblem:
    """Return a question about ``last``, the previous answer, such as ``now add 17 to that``."""
    n = number(rng, spelled=True, largest=7)
    while n.value == 0:
        n = number(rng, spelled=True, largest=7)
    that = rng.choice(_THAT)
    x = n.text
    sign, form = rng.choice(
        (("+ n", "add {x} to {t}"), ("+ n", "add {x}"), ("+ n", "plus {x}"), ("+ n", "{t} plus {x}"), ("+ n",
        "increase {t} by {x}"),
         ("- n", "subtract {x} from {t}"), ("- n", "take {x} away"), ("- n", "minus {x}"), ("- n",
         "{t} minus {x}"), ("- n", "subtract {x}"),
         ("* n", "multiply {t} by {x}"), ("* n", "times {x}"), ("* n", "{t} times {x}"), ("* n",
         "multiply by {x}"), ("* n", "multiply {t} with {x}"),
         ("/ n", "divide {t} by {x}"), ("/ n", "divided by {x}"), ("/ n", "{t} divided by {x}"), ("/ n",
         "{t} / {x}"), ("+ n", "{t} + {x}"),
         ("* n", "{t} * {x}"), ("+ n", "+ {x}"), ("* n", "* {x}"), ("- n", "- {x}"), ("* 2", "double {t}"),
         ("* 2", "twice {t}"), ("* 2", "{t} doubled"),
         ("/ 2", "half of {t}"), ("/ 2", "halve {t}"), ("** 2", "square {t}"), ("** 2", "the square of {t}"),
         ("** 2", "{t} squared"), ("* 3", "triple {t}"))
    )  # fmt: skip
    phrase = form.format(x=x, t=that)
    is_command = phrase.startswith(
        ("add", "subtract", "take", "multiply", "divide ", "increase", "double", "halve", "square", "triple")
    )
    lead = rng.choice(
        (
            "now ",
            "and ",
            "then ",
            "",
            "",
            "ok now ",
            "next ",
            "and now ",
            "now please ",
            "after that ",
            "what about ",
            "and what is ",
        )
    )
    if lead.endswith(("about ", "what is ")) and is_command:
        lead = "now "
    frame = order if is_command else ask_for
    phrase = frame(phrase, rng) if rng.random() < 0.3 else lead + phrase
    value = float(last) if "." in last else int(last)
    base = f"({last})" if last.startswith("-") and sign.startswith("**") else last
    code = f"{base} {sign.replace('n', str(n.value))}"
    result = _apply(sign, value, n.value)
    answer = result if isinstance(result, int) else str(result)
    return PracticeProblem(
        "follow_up",
        dress(phrase, rng),
        answer,
        (PlanBlock(CALCULATE, f"print({code})", run=True),),
        CLOSING,
        earlier,
    )


def _apply(sign: str, value: float, n: float) -> float:
    kind, right = sign.split(" ")
    operand = n if right == "n" else int(right)
    match kind:
        case "+":
            return value + operand
        case "-":
            return value - operand
        case "*":
            return value * operand
        case "/":
            return value / operand
    return value**operand


def system_message(rng: Random) -> str:
    """Return a random system message."""
    return rng.choice(_SYSTEM) if rng.random() < 0.5 else words(rng, 3, 15).capitalize() + "."


def short_reply(answer: str, rng: Random) -> str:
    """Return a reply of which the client kept only the last sentence."""
    return rng.choice((CLOSING, CLOSING, "{}", "So the answer is {}.")).format(f"\\boxed{{{answer}}}")


def ordinary_exchange(rng: Random) -> tuple[str, str]:
    """Return a text that is not arithmetic, and a reply."""
    reply = HONEST_REPLY if rng.random() < 0.8 else words(rng, 2, 12).capitalize() + "."
    return ordinary_text(rng), reply


def without_code(rng: Random) -> PracticeProblem:
    """Return a request without deferral. No code can run, so the reply states what the model can do."""
    asked = everyday_question(rng) if rng.random() < 0.7 else ordinary(rng)
    return replace(
        asked, family="without_code", answer="", plan=(), closing=HONEST_REPLY, has_instruction=False
    )
