"""Word problems and school mathematics in ordinary English, with plans of several blocks.

The answer of a problem is computed independently of the code in its plan, and
`trainer.quickstart.traces.write_trace` checks that both agree. Blocks that only set variables are delayed;
the last block prints and runs all of them.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Final

from trainer.quickstart.problems.base import PlanBlock, PracticeProblem
from trainer.warm_start.problems.algebra import ALGEBRA, expression
from trainer.warm_start.problems.base import Kind, printed, tidy_code, tidy_terms
from trainer.warm_start.problems.counting import COUNTING
from trainer.warm_start.problems.geometry import GEOMETRY
from trainer.warm_start.problems.stories import STORIES

KINDS: Final[tuple[Kind, ...]] = (*STORIES, *ALGEBRA, *COUNTING, *GEOMETRY, expression)
"""All kinds of problems; plain expressions twice, because users ask them most."""
BOX_REQUESTS: Final = (
    "", "", " Put the final answer in \\boxed{}.", " Give the final answer in \\boxed{}.",
    " Write your answer within \\boxed{}.",
    "\nPlease reason step by step, and put your final answer within \\boxed{}.",
)  # fmt: skip


def word_problem(rng: Random) -> PracticeProblem:
    """Return a problem of a random kind. Some ask for a box around the answer."""
    kind = rng.choice(KINDS)
    question, answer, plan, closing = kind(rng)
    blocks = [PlanBlock(reason, tidy_code(code), name=name) for reason, code, name in plan]
    blocks[-1] = replace(blocks[-1], run=True)
    text = tidy_terms(question) + rng.choice(BOX_REQUESTS)
    return PracticeProblem(f"word {kind.__name__}", text, printed(answer), tuple(blocks), closing)
