"""Wordings of questions: frames, openers, closers, letter case, typing errors and number formats."""

from __future__ import annotations

from random import Random
from typing import Final

from trainer.quickstart.vocabulary import NAMES, words

_QUESTIONS: Final = (
    "what is", "what's", "whats", "what is", "what's", "how much is", "how much would", "what are",
    "how many are",
    "what would", "what does", "do you know what", "any idea what", "what exactly is", "and what is",
    "then what is",
)  # fmt: skip
_VERBS: Final = (
    "calculate", "compute", "evaluate", "find", "determine", "work out", "figure out", "solve", "tell me",
    "give me",
    "show me", "get", "do", "calc", "return", "print", "write down", "check", "find out", "let me know",
    "find me",
    "run", "estimate", "obtain", "derive",
)  # fmt: skip
_LEADS: Final = (
    "can you", "could you", "would you", "will you", "please", "pls", "plz", "kindly", "i want you to", "now",
    "i'd like you to", "help me", "help me to", "let's", "you should", "i need you to", "could you please",
    "just",
    "can you please", "do me a favour and", "it would be nice if you could", "are you able to", "try to",
    "let us",
    "can u", "could u",
)  # fmt: skip
_WISHES: Final = (
    "i need", "i want", "i'd like", "i would like", "i am looking for", "we need", "i want to know",
    "i must know",
    "i would like to know", "i am curious about", "i wish to see", "i ask for", "i have to find",
    "my question is",
    "i was asked for", "i am trying to find", "say", "is it hard to find", "i am wondering about", "now for",
)  # fmt: skip
_LINKS: Final = (
    "", "", "", "", "", "", "the value of", "the result of", "the answer to", "the answer for", "what is",
    "how much is",
    "the exact value of", "the number", "the outcome for", "the calculation", "the expression",
    "the following:",
    "this:", "the total for", "the solution of", "the solution to",
)  # fmt: skip
_TAILS: Final = (
    " =", "=", " = ?", "=?", " equals", " equals what", " is", " is what", " is how much", " makes what",
    " gives",
    " gives what", " comes to", " comes to what", " = what", " in numbers", " exactly", " as a number",
    " would be",
    " would give", ", what is it", ", what is that", ", how much is that", ", what does it give",
    ", the result",
    ", answer", " - what is it",
)  # fmt: skip
_OPENERS: Final = (
    "hi", "hello", "hey", "hi there", "hello there", "hey there", "ok", "okay", "so", "well", "um", "right",
    "good morning",
    "good day", "dear model", "dear friend", "excuse me", "sorry", "quick question", "question",
    "one question", "maths",
    "math question", "a small sum", "next", "next one", "and", "also", "now", "then", "alright", "yo",
    "thanks",
    "thank you", "cool", "great", "nice", "perfect", "let me see", "tell me", "listen", "wow", "computer",
    "hey you",
    "Q", "task", "exercise", "problem", "let me ask", "here is one", "another one", "ok then", "first",
    "my turn",
)  # fmt: skip
_CLOSERS: Final = (
    " please", ", please", " pls", " thanks", ", thanks", ", thank you", " thx", " for me", " for us", " now",
    " today", " quickly", ", quickly", " with python", " by running python", ", if you can", " if possible",
    ", ok",
    " then", " again", ", my friend", ", computer", ", just the number", ", only the result",
    " for my homework",
    " for school", ", i forgot", ", i can't do it", " in your head", " step by step", ", be exact",
    ", be quick", ", right",
    " or not", " anyway", ", can you", ", could you", ", would you", ", do you know", ", any idea",
)  # fmt: skip
_UNITS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS: Final = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(value: int) -> str:
    """Return ``value``, 0 to 1,000, in English words."""
    if value < 20:
        return _UNITS[value]
    if value < 100:
        return _TENS[value // 10] + (f"-{_UNITS[value % 10]}" if value % 10 else "")
    if value == 1000:
        return "one thousand"
    rest = f" and {in_words(value % 100)}" if value % 100 else ""
    return f"{_UNITS[value // 100]} hundred{rest}"


def written(value: int, rng: Random, *, spelled: bool = False) -> str:
    """Return ``value`` in digits, sometimes with separators; small values in words if ``spelled``."""
    if spelled and 0 <= value <= 100 and rng.random() < 0.3:
        return in_words(value) if rng.random() < 0.7 else in_words(value).replace("-", " ")
    if abs(value) >= 1000 and rng.random() < 0.3:
        return f"{value:,}".replace(",", rng.choice((",", ",", ",", ",", ",", "_", "'", " ")))
    return str(value)


def ask_for(value: str, rng: Random) -> str:
    """Return a question for a noun phrase or expression, such as ``12 * 13`` or ``the square of 7``."""
    kind = rng.random()
    if kind < 0.16:
        return value
    if kind < 0.28:
        return value + rng.choice(_TAILS)
    if kind < 0.48:
        return f"{rng.choice(_QUESTIONS)} {value}" + (rng.choice(_TAILS) if rng.random() < 0.2 else "")
    if kind < 0.62:
        return _joined(rng.choice(_VERBS), rng.choice(_LINKS), value)
    if kind < 0.76:
        return _joined(rng.choice(_LEADS), rng.choice(_VERBS), rng.choice(_LINKS), value)
    if kind < 0.86:
        return _joined(rng.choice(_WISHES), rng.choice(_LINKS), value)
    before = words(rng, 1, 5) if rng.random() < 0.8 else ""
    after = words(rng, 1, 4) if not before or rng.random() < 0.4 else ""
    return _joined(before + rng.choice(("", "", ":", ",")), value, after)


def order(command: str, rng: Random) -> str:
    """Return a request for a command in the imperative, such as ``add 3 and 4``."""
    kind = rng.random()
    if kind < 0.3:
        return command
    if kind < 0.6:
        return f"{rng.choice(_LEADS)} {command}"
    who = rng.choice(("i", "you", "we", "one"))
    end = rng.choice(
        (f"what do {who} get", "what is it", "what is the result", "what comes out", "how much is that",
         "what does that give", "what is the answer", "what do we have", f"what will {who} get",
         "how much is there")
    )  # fmt: skip
    if kind < 0.75:
        return f"{rng.choice(('if', 'when', 'suppose'))} {who} {command}, {end}"
    if kind < 0.88:
        return f"{end} {rng.choice(('if', 'when', 'once', 'after'))} {who} {command}"
    if kind < 0.94:
        return f"{command} and {rng.choice(('tell me', 'show me', 'give me', 'return', 'print'))} the result"
    return f"{words(rng, 1, 4)} {command}"


def whether(claim: str, question: str, rng: Random) -> str:
    """Return a yes-or-no question for a claim, given as ``97 is prime`` and ``is 97 prime``."""
    if rng.random() < 0.55:
        return question
    start = rng.choice(
        ("check if", "check whether", "find out if", "test whether", "i want to know if", "can you check if",
        "decide if",
         "let me know if", "is it true that", "true or false:", "i wonder whether", "verify that",
         "please say if",
         "are you sure that", "prove that", "could you check whether")
    )  # fmt: skip
    return f"{start} {claim}"


def dress(text: str, rng: Random) -> str:
    """Return ``text`` with random openers, closers, end marks, letter case and misspellings."""
    if rng.random() < 0.25:
        opener = rng.choice(_OPENERS)
        if rng.random() < 0.15:
            opener += f" {rng.choice(NAMES)}"
        if rng.random() < 0.1:
            opener = words(rng, 1, 3)
        text = opener + rng.choice((", ", ", ", " ", ": ", "! ", ". ", " - ", "\n", "... ")) + text
    if rng.random() < 0.25:
        text += rng.choice(_CLOSERS) if rng.random() < 0.85 else f", {words(rng, 1, 4)}"
    ends = ("", "", "", "?", "?", "?", ".", " ?", "??", "...", " .")
    text += rng.choice(ends if text[-1].isdigit() or text[-1] in "!=" else (*ends, "!"))
    return _recased(_misspelled(text, rng) if rng.random() < 0.12 else text, rng)


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _recased(text: str, rng: Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return text[:1].upper() + text[1:]
    if kind < 0.85:
        return text
    if kind < 0.93:
        return text.lower()
    return text.upper() if kind < 0.97 else text.title()


def _misspelled(text: str, rng: Random) -> str:
    """Return ``text`` with one letter of a longer word dropped, doubled or swapped with the next."""
    places = [i for i in range(1, len(text) - 2) if text[i - 1 : i + 3].isalpha() and text[i].isascii()]
    if not places:
        return text
    i = rng.choice(places)
    middle = rng.choice(("", text[i] * 2, text[i + 1] + text[i]))
    return text[:i] + middle + text[i + (2 if len(middle) == 2 and middle[0] != middle[1] else 1) :]
