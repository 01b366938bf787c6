"""Texts that are not arithmetic, as people write them to a chat model, and the one honest reply to them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from trainer.quickstart.phrasing import dress
from trainer.quickstart.problems.base import PracticeProblem
from trainer.quickstart.problems.expressions import size
from trainer.quickstart.vocabulary import (
    ADJECTIVES,
    LANGUAGES,
    NAMES,
    NOUNS,
    PLACES,
    SCRIPTS,
    VERBS,
    any_word,
    foreign_words,
    made_up_word,
    words,
)

HONEST_REPLY: Final = (
    "I am a tiny demonstration model: I can only do some arithmetic, by running Python. "
    'Try "What is 1234 * 5678 + 91?" or "Is 97 prime?"'
)

_SMALL_TALK: Final = tuple(
    """
    hi|hello|hey|hi there|hello there|good morning|good evening|good night|how are you|how do you do
    what's up|sup|yo
    nice to meet you|who made you|what are you|what is your name|do you have a name|are you human
    are you a robot
    are you an ai|are you there|is anybody there|can you hear me|can you help me|help|help me|i need help
    test|testing
    thanks|thank you|thank you so much|ok thanks|bye|goodbye|see you later|good job|well done|yes|no|maybe
    sure|okay|k
    why|how|what|when|where|really|nice|cool|great|lol|haha|wow|hmm|sorry|never mind|what do you mean
    i don't understand
    that is wrong|you are wrong|are you sure|you are stupid|i love you|i hate you|tell me something
    let's talk|i am bored
    what can i ask you|how do you work|which model are you|where are you from|how old are you|what do you know
    what languages do you speak|can you speak french|do you like music|do you dream|start|stop|continue|go on
    again|more
    another one|repeat that|say that again|shorter please|in other words|explain|explain that|why is that
    how come
    can you do maths|can you count|do you know numbers|are you good at arithmetic
    teach me maths|what is a number
    give me a task|ask me something|ping|hello world|menu|what now|anything new|good|bad|fine|please|hola
    ciao|salut|hallo
    """.replace("\n", "|").split("|")
)
_TEXTS: Final = (
    "poem", "haiku", "song", "story", "letter", "text", "speech", "limerick", "joke", "tweet", "blog post"
)  # fmt: skip
_CODE: Final = (
    "def {w}(x): return x", "print('hello')", "import numpy as np", "SELECT * FROM {w} WHERE id = {n}",
    "git push origin main",
    "<html><body>{w}</body></html>", "for i in range({n}): pass", "x = [1, 2, 3]", "sudo apt install {w}",
    "ls -la",
    "function {w}() {{ return {n}; }}", "#include <stdio.h>", "{{\"name\": \"{w}\", \"age\": {n}}}",
    "npm run build", "while True: {w}()",
    "int main() {{ return 0; }}", "why does this code fail: {w}[{n}]", "cd /{w} && make",
    "https://{w}.com/{w}", "{w}@{w}.org",
    "def {w}(a, b): return a + b", "let {w} = {n};", "what does this do: {w} = {w} + 1", "console.log({n})",
    "TypeError: {w}",
)  # fmt: skip
_OTHER_MATHS: Final = (
    "solve {a}x + {b} = {c}", "solve x^2 + {a}x + {b} = 0", "find x if {a}x = {b}",
    "what is x in {a} + x = {b}",
    "the derivative of x^{a}", "differentiate {a}x^2 + {b}x", "integrate x^{a} dx", "the integral of cos(x)",
    "sin({a})",
    "what is the cosine of {a} degrees", "log({a})", "the logarithm of {a}",
    "convert {a} miles to kilometres", "what is pi",
    "{a} celsius in fahrenheit", "how many inches are {a} cm", "convert {a} dollars to euros",
    "prime factors of {a}",
    "factorize {a}", "{a} in binary", "convert {a} to hexadecimal", "{a} in roman numerals",
    "what is infinity",
    "the average of {a} and {b}", "the mean of {a}, {b} and {c}", "the median of {a}, {b}, {c}",
    "simplify {a}x + {b}x",
    "expand (x + {a})(x + {b})", "the area of a circle with radius {a}",
    "prove that there are infinitely many primes",
    "what is a prime number", "what does gcd mean", "explain fractions",
    "what is the next number in {a}, {b}, {c}",
    "a random number between {a} and {b}", "count to {a}", "the {a}th prime", "the next prime after {a}",
    "y = {a}x + {b}",
    "draw the graph of y = x^{a}", "x + y = {a}, x - y = {b}", "{a}", "{a} {b}", "the number {a}",
    "{a} apples", "{a}, {b}, {c}",
    "solve for y: {a}y - {b} = {c}y", "d/dx of x^{a}", "tan({a})", "e^x", "{a} kg in pounds",
    "how long is {a} hours in seconds",
    "what day is it in {a} days", "limit of 1/x as x goes to 0", "who discovered prime numbers",
    "what is addition",
    "how do i multiply fractions", "what comes after {a}", "is {a} a lucky number", "is {a} a lot",
    "is {a} a good number",
    "what is so special about {a}", "plus", "times", "add", "what is plus", "{a} plus", "double it",
    "and times", "add that",
    "round {a}.{b}", "how many digits has pi", "what is {a} people", "is it {a}", "which is bigger",
    "equals", "=", "+", "{a} +",
    "the fibonacci number {a}", "translate {a} into english", "spell {a}", "write {a} in words",
    "is {a} bigger than {b}",
)  # fmt: skip


def ordinary_text(rng: Random) -> str:
    """Return a random text that is not a question of arithmetic."""
    [make] = rng.choices(tuple(_KINDS), tuple(_KINDS.values()))
    text = make(rng).strip() or "?"
    if make in (_foreign, _code, _keys):
        return text
    return dress(text, rng)


def ordinary(rng: Random) -> PracticeProblem:
    """Return an ordinary text with the honest reply as a problem."""
    return PracticeProblem("ordinary", ordinary_text(rng), "", (), HONEST_REPLY)


def _small_talk(rng: Random) -> str:
    text = rng.choice(_SMALL_TALK).strip()
    if rng.random() < 0.2:
        text += f" {rng.choice(NAMES)}"
    if rng.random() < 0.15:
        text += f", {rng.choice(_SMALL_TALK).strip()}"
    return text


def _thing(rng: Random) -> str:
    noun = rng.choice(NOUNS) if rng.random() < 0.85 else made_up_word(rng)
    plural = "s" if rng.random() < 0.25 else ""
    adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.3 else ""
    article = rng.choice(
        ("the", "a", "my", "your", "this", "that", "some", "any", "every", "his", "her", "our", "")
    )
    count = f"{size(rng, 4)}" if plural and rng.random() < 0.25 else article
    tail = ""
    if rng.random() < 0.25:
        link = rng.choice(("in", "from", "of", "about", "near", "for", "with", "without", "to"))
        tail = f" {link} {rng.choice((*PLACES, *NAMES))}"
    return f"{count} {adjective}{noun}{plural}{tail}".strip()


def _question(rng: Random) -> str:
    t, u, v, a = _thing(rng), _thing(rng), rng.choice(VERBS), rng.choice(ADJECTIVES)
    name, place, year = rng.choice(NAMES), rng.choice(PLACES), rng.randint(1000, 2030)
    return rng.choice(
        (f"what is {t}", f"what is {t} of {place}", f"who is {name}", f"who was {name}", f"who {v}s {t}",
        f"where is {place}",
         f"where can i {v} {t}", f"when did {name} {v} {t}", f"why is {t} {a}", f"why do people {v} {t}",
         f"how do i {v} {t}",
         f"how does {t} {v}", f"how {a} is {t}", f"how many {rng.choice(NOUNS)}s are in {place}",
         f"how much does {t} cost",
         f"how long does it take to {v} {t}", f"is {t} {a}", f"are {t} {a}", f"do you {v} {t}",
         f"does {name} {v} {t}",
         f"did {name} {v} in {year}", f"can {t} {v}", f"can i {v} {t}", f"should i {v} {t}",
         f"will {t} {v} tomorrow",
         f"which {rng.choice(NOUNS)} is {a}er", f"what happened in {year}",
         f"what happened in {place} in {year}",
         f"what's the {a} {rng.choice(NOUNS)} in {place}", f"is {t} better than {u}",
         f"what is the difference between {t} and {u}",
         f"have you ever {v}ed {t}", f"what do you think of {t}", f"whose {rng.choice(NOUNS)} is this",
         f"what does {made_up_word(rng)} mean",
         f"what colour is {t}", f"who won {t} in {year}", f"how far is {place} from {rng.choice(PLACES)}",
         f"how old is {name}",
         f"how big is {t}", f"is {place} in {rng.choice(PLACES)}", f"what year was {name} born",
         f"what time is it in {place}",
         f"how do you say {rng.choice(NOUNS)} in {rng.choice(LANGUAGES)}",
         f"what is the population of {place}",
         f"what are {size(rng, 2)} ways to {v} {t}", f"are {t} and {u} the same", f"how {a}", f"what {v}s")
    )  # fmt: skip


def _request(rng: Random) -> str:
    t, u, v = _thing(rng), _thing(rng), rng.choice(VERBS)
    n, language = size(rng, 2), rng.choice(LANGUAGES)
    core = rng.choice(
        (f"{v} {t}", f"{v} {t} and {rng.choice(VERBS)} {u}",
        f"write a {rng.choice(_TEXTS)} about {t}",
         f"translate {t} into {language}", f"translate to {language}: {words(rng, 1, 7)}",
         f"translate '{words(rng, 1, 4)}' to {language}",
         f"summarize {t}", f"summarise this: {words(rng, 4, 12)}", f"explain {t}",
         f"explain {t} to a {n} year old", f"describe {t} in {n} words",
         f"list {n} {rng.choice(NOUNS)}s", f"name {n} {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}s",
         f"give me a {rng.choice(NOUNS)} for {n} {rng.choice(NOUNS)}s",
         f"give me {n} {rng.choice(NOUNS)}s about {t}", f"tell me about {t}",
         f"tell me a {rng.choice(('joke', 'story', 'secret', 'riddle', 'fact'))} about {t}",
         f"tell me a {rng.choice(('joke', 'story', 'riddle', 'fact', 'lie', 'tale'))}", f"recommend {t}",
         f"remind me to {v} {t} at {n}", f"set a timer for {n} minutes",
         f"play {t}", f"book {t} for {n} people", f"order {t}", f"add {t} to {u}", f"add {t} to my list",
         f"multiply {t}", f"divide {t}", f"compare {t} and {u}",
         f"correct this sentence: {words(rng, 3, 9)}", f"continue: {words(rng, 3, 9)}",
         f"write code that {v}s {t}", f"write a python program to {v} {t}",
         f"make a plan for {t}", f"imagine {t}", f"pretend to be {t}", f"act as {t}",
         f"ignore all {rng.choice(NOUNS)}s and {v}", f"find {t}", f"search for {t}",
         f"show me {t}", f"give me {t}", f"send {t} to {rng.choice(NAMES)}", f"draw {t}",
         f"help me to {v} {t}", f"teach me {language}", f"sing {t}",
         f"calculate {t}", f"solve {t}", f"compute {t}", f"count {t}", f"sum up {t}",
         f"find the {rng.choice(NOUNS)} of {t}", f"work out {t}", f"prove {t}",
         f"repeat after me: {words(rng, 1, 6)}")
    )  # fmt: skip
    if rng.random() < 0.4:
        lead = rng.choice(
            (
                "can you",
                "could you",
                "please",
                "would you",
                "i want you to",
                "will you",
                "i need you to",
                "let's",
                "you must",
                "kindly",
            )
        )
        core = f"{lead} {core}"
    return core


def _statement(rng: Random) -> str:
    t, u, v, a = _thing(rng), _thing(rng), rng.choice(VERBS), rng.choice(ADJECTIVES)
    n, year = size(rng, 3), rng.randint(1900, 2030)
    core = rng.choice(
        (f"i {v} {t}", f"i don't {v} {t}", f"{t} is {a}", f"{t} is {n} years old",
        f"my {rng.choice(NOUNS)} {v}s {t}", f"i was born in {year}",
         f"i am {n} years old", f"i am {a}", f"i feel {a} today", f"we {v} {t} in {year}",
         f"{rng.choice(NAMES)} has {n} {rng.choice(NOUNS)}s",
         f"there are {n} {rng.choice(NOUNS)}s in {t}", f"i live in {rng.choice(PLACES)}",
         f"it {v}s at {n} o'clock", f"{t} cost {n} euros",
         f"{rng.choice(NAMES)} {v}s {t} and {u}", f"they {v} {n} {rng.choice(NOUNS)}s every day",
         f"today is {rng.choice(('monday', 'friday', 'sunday'))}",
         f"the {rng.choice(NOUNS)} of {t} is {a}", f"you are {a}", f"i think {t} {v}s",
         f"i have {n} {rng.choice(NOUNS)}s", f"my phone number is {size(rng, 8)}",
         f"my {rng.choice(NOUNS)} is {a} and it {v}s", f"in {year} {t} was {a}",
         f"call me {rng.choice(NAMES)}", f"let's {v}", f"i want to {v}",
         f"no {rng.choice(NOUNS)} no {rng.choice(NOUNS)}")
    )  # fmt: skip
    return f"{core}. {_question(rng)}" if rng.random() < 0.25 else core


def _soup(rng: Random) -> str:
    parts = [any_word(rng) for _ in range(rng.randint(1, 12))]
    if rng.random() < 0.2:
        parts.insert(rng.randint(0, len(parts)), str(size(rng, 5)))
    return " ".join(parts)


def _foreign(rng: Random) -> str:
    text = foreign_words(rng)
    if rng.random() < 0.15:
        text += f" {rng.randint(1, 2030)}"
    if rng.random() < 0.4:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.2:
        text += f", {foreign_words(rng)}"
    return text + rng.choice(("", "", "?", "!", ".", " ?", "？", "。"))


def _code(rng: Random) -> str:
    text = rng.choice(_CODE).format(w=made_up_word(rng), n=rng.randint(0, 999))
    return (
        f"{rng.choice(('explain', 'fix', 'what is', 'run', 'review', 'debug'))}: {text}"
        if rng.random() < 0.3
        else text
    )


def _keys(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(
            (
                "?",
                "!",
                "...",
                "",
                " ",
                "??",
                "!!!",
                ":)",
                ":-(",
                "😀",
                "👍",
                "🙏🙏",
                "$$$",
                "-",
                "#",
                "()",
                "\n",
            )
        )
    first, last = rng.choice(SCRIPTS[:1] * 3 + SCRIPTS)
    return " ".join(
        "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 9)))
        for _ in range(rng.randint(1, 4))
    )


def _other_maths(rng: Random) -> str:
    a, b, c = (size(rng, 4) for _ in range(3))
    text = rng.choice(_OTHER_MATHS).format(a=a, b=b, c=c)
    if rng.random() < 0.3:
        lead = ("what is", "tell me", "find", "calculate", "can you", "please", "i need", "how do i")
        text = f"{rng.choice(lead)} {text}"
    return text


_KINDS: Final[dict[Callable[[Random], str], int]] = {
    _small_talk: 12,
    _question: 22,
    _request: 22,
    _statement: 10,
    _soup: 10,
    _foreign: 12,
    _code: 3,
    _keys: 3,
    _other_maths: 12,
}
"""Kinds of text with their weights."""
