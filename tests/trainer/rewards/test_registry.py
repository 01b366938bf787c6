from __future__ import annotations

import sys
import textwrap
import types
from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trainer.rewards import registry
from trainer.rewards.protocol import FinishedEpisode
from trainer.rewards.registry import RewardConfigError, RewardPart, RewardSet, RewardSpec, load_reward
from trainer.rewards.scorer import Reward, RewardError

HERE = "own_rewards"
EPISODE = FinishedEpisode(r"\boxed{7}", tokens=3)
ROW = {"question": "q", "answer": "7"}


async def one(episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
    return 1.0


async def per_token(episode: FinishedEpisode, row: Mapping[str, Any], *, factor: float = 1.0) -> float:
    return factor * episode.tokens


async def none(episode: FinishedEpisode, row: Mapping[str, Any]) -> None:
    return None


async def named(episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward:
    return Reward(0.5, "half")


async def wordy(episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward:
    return Reward(0.5, "because of this and that")


async def broken(episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
    raise KeyError("column")


async def infinite(episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
    return float("inf")


async def without_worker(episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
    raise RewardError("no worker")


async def one_argument(episode: FinishedEpisode) -> float:
    return 1.0


def synchronous(episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
    return 1.0


not_callable = 5


class Client:
    events: list[str] = []  # noqa: RUF012

    def __init__(self, url: str = "http://judge") -> None:
        if not url.startswith("http"):
            raise ValueError(f"url must start with http, got {url!r}")
        self.url = url

    async def __aenter__(self) -> Client:
        self.events.append("enter")
        return self

    async def __aexit__(self, *args: object) -> None:
        self.events.append("exit")

    async def __call__(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
        return float(len(self.url))

    def answer_of(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> str:
        return "vote"


def specs(*names: str) -> list[RewardSpec]:
    return [RewardSpec(name=f"{HERE}:{name}") for name in names]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this module importable by name, as pytest's importlib mode does not."""
    module = types.ModuleType(HERE)
    module.__dict__.update(globals())
    monkeypatch.setitem(sys.modules, HERE, module)


async def verdict(*found: RewardSpec) -> Any:
    async with RewardSet(found) as rewards:
        return await rewards.score(EPISODE, ROW)


async def test_weighted_sum_with_the_first_reason() -> None:
    result = await verdict(
        RewardSpec(name=f"{HERE}:named", weight=2.0),
        RewardSpec(name=f"{HERE}:per_token", weight=-0.1, options={"factor": 2.0}),
    )
    assert result.value == pytest.approx(2.0 * 0.5 - 0.1 * 6.0)
    assert result.reason == "half"
    assert result.parts == {"named": RewardPart(0.5, "half"), "per_token": RewardPart(6.0, "scored")}


async def test_no_verdict_of_one_is_no_verdict_of_all() -> None:
    result = await verdict(*specs("one", "none"))
    assert (result.value, result.reason) == (None, "no_verdict")
    assert result.parts["one"] == RewardPart(1.0, "scored")


async def test_rewards_without_weight_only_record() -> None:
    result = await verdict(RewardSpec(name=f"{HERE}:one"), RewardSpec(name=f"{HERE}:none", weight=0.0))
    assert result.value == 1.0
    assert result.parts["none"] == RewardPart(None, "no_verdict")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "reward broken: KeyError: 'column'"),
        ("infinite", "reward infinite: ValueError: the reward must be finite, got inf"),
        ("without_worker", "no worker"),
    ],
)
async def test_exceptions_are_no_verdict(name: str, message: str) -> None:
    result = await verdict(*specs(name))
    assert (result.value, result.reason) == (None, message)
    assert result.parts[name] == RewardPart(
        None, "error" if name == "without_worker" else "exception", message
    )


async def test_reasons_that_are_sentences_share_one_curve() -> None:
    assert (await verdict(*specs("wordy"))).parts["wordy"].reason == "other"


async def test_instances_are_entered_once_and_left() -> None:
    Client.events.clear()
    async with RewardSet([RewardSpec(name=f"{HERE}:Client", options={"url": "http://x"})]) as rewards:
        assert Client.events == ["enter"]
        assert (await rewards.score(EPISODE, ROW)).value == 8.0
        assert rewards.answer_of(EPISODE, ROW) == "vote"
    assert Client.events == ["enter", "exit"]


async def test_votes_are_boxed_answers_by_default() -> None:
    assert RewardSet(specs("one")).answer_of(EPISODE, ROW) == "7"
    assert RewardSet([RewardSpec(name="multiple_choice")]).answer_of(FinishedEpisode("(C)"), ROW) == "C"


def test_names_are_short_and_differ() -> None:
    found = [RewardSpec(name=f"{HERE}:per_token", options={"factor": f}) for f in (1.0, 2.0)]
    assert RewardSet([*found, RewardSpec(name="math")]).names == ("per_token", "per_token_2", "math")


def test_ranges_add_up_if_all_are_declared() -> None:
    declared = [
        RewardSpec(name="math"),
        RewardSpec(name="length", weight=0.5),
        RewardSpec(name="format", weight=-1),
    ]
    assert RewardSet(declared).value_range == (-1.5, 1.0)
    assert RewardSet([*declared, *specs("one")]).value_range is None
    assert RewardSet([*declared, RewardSpec(name=f"{HERE}:one", weight=0)]).value_range == (-1.5, 1.0)


def test_a_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_a_user.py").write_text(
        textwrap.dedent("""\
            class Rewards:
                @staticmethod
                async def short(episode, row):
                    return -float(episode.tokens)
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    assert load_reward("rewards_of_a_user:Rewards.short")
    with pytest.raises(RewardConfigError, match=r"has no 'Rewards.shot'. Did you mean 'short'\?"):
        load_reward("rewards_of_a_user:Rewards.shot")


async def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    found = EntryPoints(
        [
            EntryPoint("installed", f"{HERE}:one", registry.ENTRY_POINTS),
            EntryPoint("gone", "no_such_module:one", registry.ENTRY_POINTS),
        ]
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: found.select(group=group))
    assert (await verdict(RewardSpec(name="installed"))).value == 1.0
    with pytest.raises(
        RewardConfigError, match=r"entry point 'gone' \(no_such_module:one\) cannot be loaded"
    ):
        load_reward("gone")
    with pytest.raises(RewardConfigError, match=r"Did you mean 'installed'\?"):
        load_reward("instaled")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "maths",
            {},
            r"name: unknown reward 'maths'. Did you mean 'math'\? hint: use one of math, multiple_choice",
        ),
        ("something", {}, r"name: unknown reward 'something'. hint: .* an import path such as"),
        (":f", {}, "name: ':f' is not an import path. hint: write module:function"),
        ("m:", {}, "is not an import path"),
        (
            "no_such_module:f",
            {},
            "name: cannot import module 'no_such_module': ModuleNotFoundError: .* hint: install",
        ),
        (f"{HERE}:ones", {}, rf"name: module '{HERE}' has no 'ones'. Did you mean 'one'\?"),
        (
            f"{HERE}:not_callable",
            {},
            r"not_callable' is not callable. hint: write async def not_callable\(episode, row\)",
        ),
        (
            f"{HERE}:synchronous",
            {},
            r"synchronous' is not asynchronous. hint: write async def synchronous\(episode",
        ),
        (
            f"{HERE}:one_argument",
            {},
            r"one_argument' cannot be called with \(episode, row\): too many positional",
        ),
        (
            f"{HERE}:one",
            {"factor": 2},
            r"one' cannot be called with \(episode, row, factor=...\): got an unexpected",
        ),
        (
            f"{HERE}:Client",
            {"host": "x"},
            "options: .*Client': got an unexpected .*'host'. hint: its options are url",
        ),
        (f"{HERE}:Client", {"url": "x"}, "options: .*Client': url must start with http, got 'x'"),
        (
            "length",
            {"softlimit": 5},
            "options: 'length': .*'softlimit'. hint: its options are soft_limit, hard_limit",
        ),
        (
            "length",
            {"soft_limit": 9, "hard_limit": 5},
            "options: 'length': hard_limit must be above soft_limit",
        ),
        ("tool_wait", {"limit_s": 0.0}, "limit_s must be above free_s"),
        ("exact_match", {"source": "box"}, "source must be 'boxed' or 'last_line', got 'box'"),
        ("math", {"workers": 0}, "workers must be at least 1"),
        ("math", {"deadline_s": 0}, "deadline_s must be above 0"),
    ],
)
def test_mistakes(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardConfigError, match=message):
        load_reward(name, options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "maths"}, "name: unknown reward 'maths'"),
        ({"name": "length", "options": {"limit": 1}}, "options: 'length'"),
        ({"name": ""}, "at least 1 character"),
        ({"name": "math", "weight": float("nan")}, "finite"),
        ({"name": "math", "wieght": 1}, "extra"),
    ],
)
def test_specs_are_checked_without_importing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardSpec.model_validate(fields)
    RewardSpec(name="no_such_module:f")


def test_the_position_of_a_bad_reward_is_reported() -> None:
    with pytest.raises(RewardConfigError, match=r"rewards\.1\.name: cannot import module 'no_such_module'"):
        RewardSet([RewardSpec(name="math"), RewardSpec(name="no_such_module:f")])
    with pytest.raises(RewardConfigError, match="at least one reward needs a weight"):
        RewardSet([RewardSpec(name="math", weight=0)])
