from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.episode import Outcome
from trainer.rewards import FinishedEpisode, Reward
from trainer.rewards.registry import load_reward
from trainer.rewards.shipped import SHIPPED

BLOCK = "```python\nprint(1)\n```"


async def grade(
    name: str, text: str = "", answer: str = "", *, options: dict[str, Any] | None = None, **fields: Any
) -> Reward | None:
    row = {"question": "q", "answer": answer, "options": fields.pop("choices", None)}
    result = await load_reward(name, options or {})(FinishedEpisode(text, **fields), row)
    assert result is None or isinstance(result, Reward)
    return result


class FakeScorer:
    entered = 0

    async def score(self, response_text: str, gold: str) -> Reward:
        return Reward(1.0, "correct") if response_text == gold else Reward(0.0, "timeout")

    async def __aenter__(self) -> FakeScorer:
        self.entered += 1
        return self

    async def __aexit__(self, *args: object, **kwargs: object) -> None:
        self.entered -= 1


async def test_math_keeps_the_scorers_verdict() -> None:
    scorer = FakeScorer()
    reward: Any = load_reward("math", scorer=scorer)
    async with reward:
        assert scorer.entered == 1
        assert await reward(FinishedEpisode("5"), {"answer": "5"}) == Reward(1.0, "correct")
        assert await reward(FinishedEpisode("6"), {"answer": "5"}) == Reward(0.0, "timeout")
        void = FinishedEpisode("5", outcome=Outcome.LENGTH, is_void=True)
        assert await reward(void, {"answer": "5"}) == Reward(0.0, "length")
    assert scorer.entered == 0


async def test_math_compares_for_real() -> None:
    reward: Any = load_reward("math", {"workers": 1})
    async with reward:
        row = {"answer": r"\frac{1}{2}"}
        assert await reward(FinishedEpisode(r"\boxed{0.5}"), row) == Reward(1.0, "correct")
        assert await reward(FinishedEpisode(r"\boxed{0.6}"), row) == Reward(0.0, "incorrect")


@pytest.mark.parametrize(
    ("text", "gold", "reward"),
    [
        (r"\boxed{B}", "B", Reward(1.0, "correct")),
        (r"\boxed{London}", "(B)", Reward(1.0, "correct")),
        ("The answer is A.", "B", Reward(0.0, "incorrect")),
        ("no idea", "B", Reward(0.0, "no_answer")),
        (r"\boxed{B}", "Madrid", Reward(0.0, "bad_gold")),
    ],
)
async def test_multiple_choice(text: str, gold: str, reward: Reward) -> None:
    assert await grade("multiple_choice", text, gold, choices=["Paris", "London"]) == reward


@pytest.mark.parametrize(
    ("text", "gold", "options", "reward"),
    [
        (r"\boxed{\text{  New York. }}", "new  york", {}, Reward(1.0, "correct")),
        (r"\boxed{ＡＢＣ}", "$abc$", {}, Reward(1.0, "correct")),
        (r"\boxed{abd}", "abc", {}, Reward(0.0, "incorrect")),
        ("abc", "abc", {}, Reward(0.0, "no_answer")),
        ("So:\n **abc**\n\n", "abc", {"source": "last_line"}, Reward(1.0, "correct")),
        ("\n \n", "abc", {"source": "last_line"}, Reward(0.0, "no_answer")),
        (r"\boxed{ABC}", "abc", {"case_sensitive": True}, Reward(0.0, "incorrect")),
    ],
)
async def test_exact_match(text: str, gold: str, options: dict[str, Any], reward: Reward) -> None:
    assert await grade("exact_match", text, gold, options=options) == reward


@pytest.mark.parametrize(
    ("tokens", "reward"),
    [
        (0, Reward(0.0, "short")),
        (100, Reward(0.0, "short")),
        (150, Reward(-0.5, "over_soft_limit")),
        (200, Reward(-1.0, "over_hard_limit")),
        (900, Reward(-1.0, "over_hard_limit")),
    ],
)
async def test_length(tokens: int, reward: Reward) -> None:
    assert await grade("length", tokens=tokens, options={"soft_limit": 100, "hard_limit": 200}) == reward


@pytest.mark.parametrize(
    ("waited", "reward"),
    [
        (None, None),
        (0.0, Reward(0.0, "no_wait")),
        (1.0, Reward(0.0, "no_wait")),
        (2.0, Reward(-0.25, "waited")),
        (5.0, Reward(-1.0, "over_limit")),
        (60.0, Reward(-1.0, "over_limit")),
    ],
)
async def test_tool_wait(waited: float | None, reward: Reward | None) -> None:
    options = {"limit_s": 5.0, "free_s": 1.0}
    assert await grade("tool_wait", tool_wait_seconds=waited, options=options) == reward


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "kept"),
        ({"pending_blocks": 0, "open_fence": False}, "kept"),
        ({"pending_blocks": 1, "open_fence": False}, "pending_blocks"),
        ({"pending_blocks": 0, "open_fence": True}, "open_fence"),
    ],
)
async def test_format_of_reported_fields(fields: dict[str, Any], reason: str) -> None:
    reward = await grade("format", r"\boxed{1}", **fields)
    assert reward == Reward(float(reason == "kept"), reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (r"\boxed{1}", "kept"),
        ("1", "no_box"),
        (f"{BLOCK}<tool_call>1</tool_call> \\boxed{{1}}", "kept"),
        (f"{BLOCK} \n \\boxed{{1}}", "pending_blocks"),
        (f"{BLOCK}<tool_call>1</tool_call>\n{BLOCK}\n\\boxed{{1}}", "pending_blocks"),
        ("```python\nx = r'\\boxed{1}'\n", "open_fence"),
    ],
)
async def test_format_reads_the_text_where_nothing_is_reported(text: str, reason: str) -> None:
    reward = await grade("format", text)
    assert reward == Reward(float(reason == "kept"), reason)


@given(
    name=st.sampled_from(sorted(SHIPPED.keys() - {"math"})),
    text=st.text(alphabet="`python\n\\boxed{AB}()<tol_ca>", max_size=80),
    tokens=st.integers(0, 10**6),
    waited=st.floats(0, 1e6),
)
async def test_values_are_in_the_declared_range(name: str, text: str, tokens: int, waited: float) -> None:
    reward: Any = load_reward(name)
    low, high = reward.value_range
    result = await grade(name, text, "A", tokens=tokens, tool_wait_seconds=waited)
    assert result is not None
    assert low <= result.value <= high


@pytest.mark.parametrize("name", ["multiple_choice", "exact_match", "math"])
async def test_void_episodes_fail(name: str) -> None:
    reward = await grade(name, r"\boxed{A}", "A", outcome=Outcome.VOID, is_void=True)
    assert reward == Reward(0.0, "void")
