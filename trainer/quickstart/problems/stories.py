"""Everyday questions in several sentences: ranges, chains of steps and stories."""

from __future__ import annotations

from random import Random

from trainer.quickstart.phrasing import ask_for, dress, order, written
from trainer.quickstart.problems.base import (
    CLOSING,
    PlanBlock,
    PracticeProblem,
    as_answer,
    one_block_problem,
)
from trainer.quickstart.problems.expressions import (
    number,
    size,
)
from trainer.quickstart.vocabulary import NAMES, NOUNS, made_up_word


def ranges(rng: Random) -> PracticeProblem:
    """Return a question for a sum of numbers, squares or cubes over a range."""
    a = 1 if rng.random() < 0.5 else size(rng, 4)
    b = a + size(rng, 3)
    what, exponent = rng.choice(
        (("numbers", 1), ("whole numbers", 1), ("integers", 1), ("all numbers", 1), ("natural numbers", 1),
        ("", 1),
         ("squares", 2), ("square numbers", 2), ("cubes", 3), ("all whole numbers", 1), ("all integers", 1))
    )  # fmt: skip
    to = rng.choice((" to ", " to ", " up to ", " through ", " until ", "-"))
    start, end = written(a, rng), written(b, rng)
    span = f"from {start}{to}{end}" if rng.random() < 0.8 else f"between {start} and {end}"
    if what:
        noun = f"{what} {span}"
        the = rng.choice(("the ", "the ", "", "all the ")) if not what.startswith("all") else ""
        phrase = rng.choice(
            (
                "the sum of {t}{x}",
                "sum of {t}{x}",
                "the total of {t}{x}",
                "add up {t}{x}",
                "add {t}{x}",
                "sum {t}{x}",
                "sum up {t}{x}",
            )
        )
        phrase = phrase.format(t=the, x=noun)
    else:
        phrase = rng.choice(
            (
                f"the sum {span}",
                f"1 + 2 + 3 + ... + {b}",
                f"1+2+...+{b}",
                f"sum everything {span}",
                f"the sum of {start}{to}{end}",
            )
        )
        a = 1 if "..." in phrase else a
    text = order(phrase, rng) if phrase.startswith(("add", "sum up", "sum every")) else ask_for(phrase, rng)
    if exponent == 1:
        code = f"print(sum(range({a}, {b} + 1)))"
    else:
        code = f"print(sum(k ** {exponent} for k in range({a}, {b} + 1)))"
    reason = {1: "I add the numbers.", 2: "I add the squares.", 3: "I add the cubes."}[exponent]
    answer = sum(k**exponent for k in range(a, b + 1))
    return one_block_problem("ranges", dress(text, rng), answer, code, reason)


def chain(rng: Random) -> PracticeProblem:
    """Return a chain of steps. Each step is a delayed block; the last block runs all."""
    start = number(rng, spelled=True, largest=6)
    forms = {
        "+": ("add {}", "then add {}", "plus {}", "increase it by {}", "and add {}"),
        "-": ("subtract {}", "take away {}", "then subtract {}", "minus {}", "decrease it by {}"),
        "*": (
            "multiply by {}",
            "multiply it by {}",
            "then multiply by {}",
            "times {}",
            "multiply the result by {}",
        ),
    }
    value = start.value
    phrase = [
        rng.choice(
            (
                "start with {}",
                "take {}",
                "take the number {}",
                "begin with {}",
                "i think of {}",
                "let n be {}",
            )
        ).format(start.text)
    ]
    blocks = [PlanBlock("I call the start n.", f"n = {start.value}", name="n")]
    for _ in range(rng.choice((2, 2, 3))):
        sign = rng.choice("+-*")
        step = number(rng, spelled=True, largest=4)
        value = (
            value + step.value if sign == "+" else value - step.value if sign == "-" else value * step.value
        )
        phrase.append(rng.choice(forms[sign]).format(step.text))
        blocks.append(
            PlanBlock(
                {"+": "I add.", "-": "I subtract.", "*": "I multiply."}[sign],
                f"n = n {sign} {step.value}",
                name="n",
            )
        )
    blocks.append(PlanBlock("The value to read is n.", "print(n)", run=True))
    sep = rng.choice((", ", ", ", ". ", "; ", ", then "))
    text = sep.join(phrase) + rng.choice(
        (
            "",
            "",
            sep.rstrip(" then")
            + " "
            + rng.choice(
                ("what is it", "what do i get", "what is n", "what is the result", "how much is it")
            ),
        )
    )
    return PracticeProblem("chain", dress(text, rng), as_answer(value), tuple(blocks), CLOSING)


def story(rng: Random) -> PracticeProblem:
    """Return a short word problem about counted things."""
    who = rng.choice(
        (*NAMES, "i", "my friend", "a farmer", "the teacher", "she", "he", "we", made_up_word(rng).title())
    )
    thing = rng.choice(
        (
            rng.choice(NOUNS) + "s",
            made_up_word(rng) + "s",
            "apples",
            "coins",
            "eggs",
            "balls",
            "cards",
            "books",
            "sweets",
        )
    )
    box = rng.choice(
        (rng.choice(NOUNS) + "s", "boxes", "bags", "rows", "crates", "jars", "packs", made_up_word(rng) + "s")
    )
    a, b, c = (size(rng, 4) for _ in range(3))
    has = "have" if who in ("i", "we") else "has"
    kind = rng.choice(("times", "times", "plus", "plus", "minus", "minus", "share", "price", "left"))
    x, y, z = (written(v, rng, spelled=True) for v in (a, b, c))
    many = rng.choice(("how many", "how many"))
    answer: int | str
    if kind == "times":
        text = rng.choice(
            (f"{who} {has} {x} {box} with {y} {thing} in each",
            f"there are {x} {box} and each has {y} {thing}",
             f"{x} {box} of {y} {thing} each", f"each of {x} {box} holds {y} {thing}",
             f"{x} {box} with {y} {thing} each",
             f"{who} fills {x} {box} with {y} {thing} each", f"{x} {box} contain {y} {thing} each",
             f"every one of the {x} {box} has {y} {thing}")
        )  # fmt: skip
        end = rng.choice(
            (
                f"{many} {thing} are there",
                f"{many} {thing} in total",
                f"{many} {thing} is that",
                f"{many} {thing} altogether",
                f"what is the total number of {thing}",
                f"{many} {thing} {'do' if has == 'have' else 'does'} {who} have",
            )
        )
        code, answer = f"{a} * {b}", a * b
    elif kind == "plus":
        text = rng.choice(
            (f"{who} {has} {x} {thing} and buys {y} more", f"{who} {has} {x} {thing} and finds {y} more",
             f"{who} {has} {x} {thing}. then {who} gets another {y}",
             f"there are {x} {thing} here and {y} {thing} there",
             f"there were {x} {thing} and {y} more came", f"{who} had {x} {thing} and was given {y} more",
             f"{x} {thing} are in the box and {y} are added",
             f"{who} collects {x} {thing} on monday and {y} on tuesday",
             f"{who} {has} {x} {thing}, a friend {has} {y} {thing}")
        )  # fmt: skip
        end = rng.choice(
            (
                f"{many} {thing} are there now",
                f"{many} {thing} in total",
                f"{many} {thing} altogether",
                f"{many} is that",
                f"{many} {thing} {'do' if has == 'have' else 'does'} {who} have",
                f"{many} {thing} together",
            )
        )
        code, answer = f"{a} + {b}", a + b
    elif kind == "minus":
        a, b, x, y = (a, b, x, y) if a > b else (b, a, y, x)
        text = rng.choice(
            (f"{who} {has} {x} {thing} and gives away {y}", f"{who} {has} {x} {thing} and loses {y} of them",
             f"there were {x} {thing} and {y} were sold", f"{who} had {x} {thing} and ate {y}",
             f"of {x} {thing} {y} are broken",
             f"{y} of the {x} {thing} are gone", f"{who} {has} {x} {thing} and sells {y}",
             f"there are {x} {thing}. {y} go away",
             f"out of {x} {thing}, {y} were lost", f"{x} {thing} were there, {y} left")
        )  # fmt: skip
        end = rng.choice(
            (
                f"{many} are left",
                f"{many} {thing} remain",
                f"{many} {thing} are left",
                f"{many} {thing} {'do' if has == 'have' else 'does'} {who} still have",
                f"{many} are still there",
            )
        )
        # The larger number first, independent of the order in the text.
        code, answer = f"{a} - {b}", a - b
    elif kind == "share":
        k = rng.randint(2, 40)
        n = k * size(rng, 3)
        people = rng.choice(("friends", "children", "people", "kids", "students", made_up_word(rng) + "s"))
        text = rng.choice(
            (f"{n} {thing} are shared equally among {k} {people}", f"{k} {people} share {n} {thing}",
             f"{n} {thing} are divided between {k} {people}",
             f"{who} gives {n} {thing} to {k} {people}, all get the same",
             f"{k} {people} split {n} {thing} equally")
        )  # fmt: skip
        end = rng.choice(
            (
                f"{many} does each get",
                f"{many} {thing} for each",
                f"{many} {thing} does each one have",
                f"{many} for each of them",
                "what does each get",
            )
        )
        code, answer = f"{n} / {k}", str(n / k)
    elif kind == "price":
        unit = rng.choice(("dollars", "euros", "cents", "pounds", "coins", "$", "francs"))
        text = rng.choice(
            (f"one of the {thing} costs {y} {unit}. {who} buys {x}",
            f"{who} buys {x} {thing} at {y} {unit} each",
             f"{x} {thing} cost {y} {unit} each", f"the price is {y} {unit} for one. {who} {has} {x} {thing}",
             f"a {thing[:-1]} costs {y} {unit}, and {who} takes {x} of them")
        )  # fmt: skip
        end = rng.choice(
            (
                "how much is that",
                "what is the price",
                f"how many {unit} is that",
                "how much must be paid",
                "what do they cost",
                "what is the total",
                "how much does it cost",
            )
        )
        code, answer = (f"{b} * {a}", a * b) if text.find(y) < text.find(x) else (f"{a} * {b}", a * b)
    else:
        text = rng.choice(
            (f"{who} {has} {x} {box} with {y} {thing} in each. {z} {thing} are lost",
            f"{x} {box} hold {y} {thing} each, but {z} are broken",
             f"{who} packs {x} {box} with {y} {thing} each and sells {z} {thing}")
        )  # fmt: skip
        end = rng.choice((f"{many} are left", f"{many} {thing} remain", f"{many} {thing} are left"))
        plan = (
            PlanBlock("First all of them.", f"total = {a} * {b}", name="total"),
            PlanBlock(f"What is left is total minus {c}.", f"print(total - {c})", run=True),
        )
        return PracticeProblem(
            "story", dress(text + rng.choice((". ", ", ")) + end, rng), a * b - c, plan, CLOSING
        )
    text = (
        f"{text}{rng.choice(('. ', ', ', '. ', ' - '))}{end}" if rng.random() < 0.85 else f"{end} if {text}"
    )
    return one_block_problem("story", dress(text, rng), answer, f"print({code})")
