"""Rewards by name: loading them, checking them, and combining several into one number.

A recipe lists its rewards::

    [[rewards]]
    name = "math"

    [[rewards]]
    name = "my_package.rewards:short"    # module:function, or module:Class
    weight = 0.2
    options = {limit = 2000}             # keyword arguments

A package can register names for its functions as entry points of the group ``ih_grpo.rewards``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from types import TracebackType
from typing import Any, Final, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.rewards.protocol import FinishedEpisode, RewardFunction
from trainer.rewards.scorer import AnswerScorer, Reward, RewardError
from trainer.rewards.shipped import SHIPPED

ENTRY_POINTS: Final = "ih_grpo.rewards"
_REASON: Final = re.compile(r"\w{1,40}")
_log = logging.getLogger(__name__)


class RewardConfigError(ValueError):
    """A reward cannot be loaded; the message names the field and gives a hint."""


class RewardSpec(BaseModel):
    """One item of ``[[rewards]]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1)
    """A shipped reward (``math``, ``multiple_choice``, ``exact_match``, ``length``, ``tool_wait``,
    ``format``), an import path such as ``my_package.rewards:short``, or the name of an entry point."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the sum of all rewards. 0 only records the reward's curves."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the reward's class, or of each call of a function."""

    @model_validator(mode="after")
    def _loadable(self) -> Self:
        # Import paths are only imported when a run starts.
        if ":" not in self.name:
            load_reward(self.name, self.options)
        return self


DEFAULT_REWARDS: Final = (RewardSpec.model_construct(name="math"),)


def load_reward(
    name: str, options: Mapping[str, Any] | None = None, *, scorer: AnswerScorer | None = None
) -> RewardFunction:
    """Return a reward function by its shipped name, import path or entry point.

    The working directory is added to the import path, as Python does for scripts.

    Args:
        name: see `RewardSpec`.
        options: keyword arguments: of the constructor of a class, else of each call.
        scorer: used by ``math`` instead of processes of its own.

    Raises:
        RewardConfigError: it cannot be imported, is not an asynchronous callable, or rejects ``options``.
    """
    found = _find(name)
    if name == "math" and scorer is not None:
        found = functools.partial(found, scorer=scorer)
    if name in SHIPPED or inspect.isclass(found):
        return _checked(name, _construct(name, found, options or {}), {})
    return _checked(name, found, options or {})


@dataclass(frozen=True, slots=True)
class RewardPart:
    """The verdict of one reward function on one episode."""

    value: float | None
    """Before the weight; None without a verdict."""
    reason: str
    """The function's own reason, ``scored`` for a bare number, ``no_verdict`` for None, ``error`` if answers
    could not be compared, or ``exception``."""
    error: str | None = None
    """Message of the exception, if the function raised one."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The combined reward of one episode."""

    value: float | None
    """Weighted sum; None if a function with a weight gave no verdict."""
    reason: str
    """The first reward's reason; without a verdict, that of the function that gave none."""
    parts: Mapping[str, RewardPart]
    """By name, in the order of the recipe."""


class RewardSet:
    """Several weighted reward functions. An async context manager; functions with ``__aenter__`` are entered.

    Args:
        specs: the recipe's rewards.
        scorer: used by ``math`` instead of processes of its own.

    Raises:
        RewardConfigError: a reward cannot be loaded, or no reward has a weight.
    """

    def __init__(
        self, specs: Sequence[RewardSpec] = DEFAULT_REWARDS, *, scorer: AnswerScorer | None = None
    ) -> None:
        if not any(spec.weight for spec in specs):
            raise RewardConfigError("rewards: at least one reward needs a weight other than 0")
        self._weights: dict[str, float] = {}
        self._functions: dict[str, RewardFunction] = {}
        for index, spec in enumerate(specs):
            try:
                function = load_reward(spec.name, spec.options, scorer=scorer)
            except RewardConfigError as error:
                raise RewardConfigError(f"rewards.{index}.{error}") from None
            name = self._free_name(short_name(spec.name))
            self._functions[name] = function
            self._weights[name] = spec.weight
        self._stack = AsyncExitStack()
        self._warned: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Names in curves and records: the part of an import path after the colon, numbered if it repeats."""
        return tuple(self._functions)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Smallest and largest possible sum, or None if a function does not declare its range."""
        low = high = 0.0
        for name, function in self._functions.items():
            declared = getattr(function, "value_range", None)
            if not self._weights[name]:
                continue
            if declared is None:
                return None
            ends = sorted(self._weights[name] * end for end in declared)
            low, high = low + ends[0], high + ends[1]
        return low, high

    async def score(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> Verdict:
        """Call all functions concurrently and combine the results. An exception counts as no verdict."""
        parts = dict(
            zip(
                self._functions,
                await asyncio.gather(*(self._call(name, episode, row) for name in self._functions)),
                strict=True,
            )
        )
        missing = [part for name, part in parts.items() if part.value is None and self._weights[name]]
        if missing:
            return Verdict(None, missing[0].error or missing[0].reason, parts)
        total = sum(
            self._weights[name] * part.value for name, part in parts.items() if part.value is not None
        )
        return Verdict(total, next(iter(parts.values())).reason, parts)

    def answer_of(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> str | None:
        """Return the episode's vote in maj@k: the first reward's ``answer_of``, or the last boxed answer."""
        function = next(iter(self._functions.values()))
        answer_of = getattr(function, "answer_of", None)
        return episode.answer if answer_of is None else cast("str | None", answer_of(episode, row))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for function in self._functions.values():
                if hasattr(function, "__aenter__"):
                    await stack.enter_async_context(cast("Any", function))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _call(self, name: str, episode: FinishedEpisode, row: Mapping[str, Any]) -> RewardPart:
        try:
            return _part(await self._functions[name](episode, row))
        except RewardError as error:
            return RewardPart(None, "error", str(error))
        except Exception as error:
            if name not in self._warned:  # the first one with its traceback; the others are counted
                self._warned.add(name)
                _log.warning("reward %s raised an exception: the episode has no reward", name, exc_info=True)
            return RewardPart(None, "exception", f"reward {name}: {type(error).__name__}: {error}")

    def _free_name(self, name: str) -> str:
        number, free = 1, name
        while free in self._functions:
            number += 1
            free = f"{name}_{number}"
        return free


def declared_range(specs: Sequence[RewardSpec]) -> tuple[float, float] | None:
    """Return `RewardSet.value_range` without importing modules; None if a reward is an import path."""
    if any(":" in spec.name and spec.weight for spec in specs):
        return None
    return RewardSet([spec for spec in specs if spec.weight]).value_range


def short_name(name: str) -> str:
    """Return the name of a reward in curves: the part of an import path after the colon."""
    return re.sub(r"\W", "_", name.rpartition(":")[2])


def _part(result: float | Reward | None) -> RewardPart:
    if result is None:
        return RewardPart(None, "no_verdict")
    value, reason = (result.value, result.reason) if isinstance(result, Reward) else (result, "scored")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the reward must be finite, got {number}")
    return RewardPart(number, reason if _REASON.fullmatch(reason) else "other")


def _find(name: str) -> Any:
    if name in SHIPPED:
        return SHIPPED[name]
    if ":" in name:
        try:
            return import_object(name)
        except ImportPathError as error:
            raise RewardConfigError(f"name: {error}") from error.__cause__
    registered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name in registered:
        try:
            return registered[name].load()
        except Exception as error:
            raise RewardConfigError(
                f"name: the entry point {name!r} ({registered[name].value}) cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
    known = [*SHIPPED, *registered]
    close = get_close_matches(name, known, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    raise RewardConfigError(
        f"name: unknown reward {name!r}.{meant} hint: use one of {', '.join(known)}, or an import path such "
        f"as my_package.rewards:function"
    )


class ImportPathError(ValueError):
    """An import path names nothing; the message gives a hint."""


def import_object(path: str) -> Any:
    """Return what an import path ``module:name`` names. The working directory is searched too.

    Raises:
        ImportPathError: the module or the name does not exist.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ImportPathError(f"{path!r} is not an import path. hint: write module:function")
    if (directory := os.getcwd()) not in sys.path:  # noqa: PTH109 - entries of sys.path are text
        sys.path.append(directory)
    try:
        found: Any = import_module(module_name)
    except Exception as error:
        raise ImportPathError(
            f"cannot import module {module_name!r}: {type(error).__name__}: {error}. hint: install the "
            f"module or put it into the working directory"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            close = get_close_matches(part, dir(found), n=1)
            meant = f". Did you mean {close[0]!r}?" if close else ""
            raise ImportPathError(f"module {module_name!r} has no {name!r}{meant}")
        found = getattr(found, part)
    return found


def _construct(name: str, factory: Any, options: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        known = [p for p in inspect.signature(factory).parameters if p != "scorer"]
        raise RewardConfigError(
            f"options: {name!r}: {error}. hint: its options are {', '.join(known) or 'none'}"
        ) from None
    try:
        return factory(**options)
    except (TypeError, ValueError) as error:
        raise RewardConfigError(f"options: {name!r}: {error}") from error


def _checked(name: str, function: Any, options: Mapping[str, Any]) -> RewardFunction:
    call = function if inspect.isroutine(function) else vars(type(function)).get("__call__")
    if not callable(function):
        raise RewardConfigError(
            f"name: {name!r} is not callable. hint: write async def {short_name(name)}(episode, row)"
        )
    if not inspect.iscoroutinefunction(call):
        raise RewardConfigError(
            f"name: {name!r} is not asynchronous. hint: write async def {short_name(name)}(episode, row)"
        )
    try:
        inspect.signature(function).bind(None, None, **options)
    except TypeError as error:
        arguments = ", ".join(["episode", "row", *(f"{key}=..." for key in options)])
        raise RewardConfigError(f"name: {name!r} cannot be called with ({arguments}): {error}") from None
    if options:  # update_wrapper keeps attributes such as answer_of
        function = functools.update_wrapper(functools.partial(function, **options), function)
    return cast("RewardFunction", function)
