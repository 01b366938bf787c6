"""Rejection sampling: solutions of any problem file, sampled before the training and kept if they are right.

The episodes are those that the server runs. A kept one becomes a text of the deferred protocol: where the
server ran the code of a turn that ended without the execute marker, the text has the marker.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from pydantic import Field

from service.deferral.answer import last_boxed
from service.deferral.policy import DeferralPolicy
from service.engines.adapters import merged
from service.engines.base import EngineError, Sampling, Tokenizer
from service.episode.runner import EpisodeRunner
from service.sandbox.base import Sandbox
from trainer.data.decontamination import find_overlaps
from trainer.data.problems import Problem
from trainer.data.sources import load_benchmarks, load_source
from trainer.quickstart.traces import Segment
from trainer.rewards.registry import RewardSet, RewardSpec
from trainer.training.episodes import Sample, sample_episode, sample_seed
from trainer.training.run_files import read_complete_lines
from trainer.training.runtime_config import RuntimeConfig
from trainer.training.setup import make_engine, make_sandbox, start_all

FILE: Final = "solved.jsonl"
BOX_REQUEST: Final = " Put the final answer in \\boxed{}."
_OUTPUT_FENCE: Final = "```output"


class SolvedSettings(RuntimeConfig):
    """The table ``[solved]``: which problems are sampled, by which model, and which solutions are kept."""

    problems: tuple[str, ...] = ()
    """Parquet or JSON files, folders or hub ids. Empty: no rejection sampling."""
    decontaminate: tuple[str, ...] = ()
    """Benchmarks or suites; problems that overlap with them are left out."""
    max_problems: int = Field(default=500, ge=1)
    """Problems to sample, drawn at random."""
    samples: int = Field(default=1, ge=1)
    """Samples per problem."""
    adapter: Path | None = None
    """Adapter of an earlier warm start that samples. Default: the untrained checkpoint, whose blocks the
    server runs as soon as they are closed."""
    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus of the sampling."""
    max_turns: int = Field(default=4, ge=2)
    """Turns of an episode."""
    max_turn_tokens: int = Field(default=512, ge=16)
    """Tokens of a turn."""
    max_episode_tokens: int = Field(default=1536, ge=64)
    """Tokens of an episode, with its prompt."""
    run_limit_s: float = Field(default=5.0, gt=0)
    """Seconds that the code of a flush may run."""
    reward: str = "math"
    """Grades the solutions. Kept are those with a reward of at least 1."""
    max_errors: int = Field(default=1, ge=0)
    """A solution is kept only if at most this many of its flushes failed."""
    delayed_weight: int = Field(default=2, ge=1)
    """Weight of a solution with delayed blocks in the draw; others have 1."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Share of these solutions among the problems that are trained on."""

    def sampling_policy(self, policy: DeferralPolicy) -> DeferralPolicy:
        """Return the policy of the sampled episodes: ``policy`` with the limits of this table.

        Code in a turn without a marker runs too. Without an adapter the mode is ``immediate``, because an
        untrained model continues with an invented output otherwise.
        """
        values = {
            **policy.model_dump(),
            "unflushed": "run",
            "max_turns": self.max_turns,
            "max_turn_tokens": self.max_turn_tokens,
            "max_episode_tokens": self.max_episode_tokens,
            "run_limit_s": self.run_limit_s,
        }
        if self.adapter is None:
            values["mode"] = "immediate"
        return DeferralPolicy.model_validate(values)


@dataclass(frozen=True, slots=True)
class SampledSolution:
    """A sampled episode with its verdict. ``segments`` is empty unless it is kept."""

    problem: str
    """Id of the problem."""
    sample: int
    question: str
    reward: float
    delayed: int
    """Delayed blocks."""
    verdict: str
    """``kept``, or the reason why not."""
    segments: tuple[Segment, ...] = ()

    @property
    def is_kept(self) -> bool:
        return self.verdict == "kept"


def read_problems(settings: SolvedSettings, seed: int) -> list[Problem]:
    """Return the problems to sample, in a random order that depends on ``seed``.

    Raises:
        DataError: a source is unreadable or empty, or a row is invalid.
    """
    check_gold = settings.reward == "math"
    problems = [
        p for source in settings.problems for p in load_source(source, check_gold=check_gold).problems
    ]
    if settings.decontaminate:
        bad = find_overlaps(problems, load_benchmarks(settings.decontaminate)).contaminated
        problems = [problem for problem in problems if problem.id not in bad]
    Random(f"solved {seed}").shuffle(problems)
    return problems[: settings.max_problems]


async def sample_solutions(
    settings: SolvedSettings,
    problems: Sequence[Problem],
    model_dir: Path,
    policy: DeferralPolicy,
    path: Path,
    *,
    seed: int,
    on_solution: Callable[[SampledSolution], None] = lambda solution: None,  # noqa: ARG005
    sandbox: Sandbox | None = None,
) -> int:
    """Sample what is missing in ``path`` and append every result to it.

    A sample whose sandbox failed or whose reward has no verdict is not saved. The next call samples it again.

    Args:
        settings: model and limits.
        problems: of `read_problems`.
        model_dir: the untrained checkpoint.
        policy: of the texts that are trained on.
        path: JSON Lines of `SampledSolution`. Results in it are not sampled again.
        seed: of the run.
        on_solution: called with each new result.
        sandbox: replaces the sandbox of the settings; not started.

    Returns:
        The number of samples that were not saved.

    Raises:
        EngineError, SandboxError, ValueError: the sampling can't start or failed; finished results are kept.
    """
    done = {(solution.problem, solution.sample) for solution in load_solutions(path)}
    missing = [
        (problem, sample)
        for sample in range(settings.samples)
        for problem in problems
        if (problem.id, sample) not in done
    ]
    if not missing:
        return 0
    own = settings.sampling_policy(policy)
    directory = model_dir if settings.adapter is None else merged(settings.adapter, model_dir)
    slots = asyncio.Semaphore(settings.max_concurrent_episodes)
    async with AsyncExitStack() as stack:
        engine = make_engine(settings, directory, own, settings.device)
        sandbox = sandbox or make_sandbox(settings, own)
        await start_all(stack, sandbox, engine)
        reward = await stack.enter_async_context(RewardSet([RewardSpec(name=settings.reward)]))
        file = stack.enter_context(path.open("a", encoding="utf-8"))
        runner = EpisodeRunner(
            engine, sandbox, own, Sampling(temperature=settings.temperature, top_p=settings.top_p)
        )

        async def solve(problem: Problem, number: int) -> bool:
            """Return whether the sample has a verdict."""
            async with slots:
                question = problem.question
                asked = question if "boxed" in question else question + BOX_REQUEST
                prompt = runner.render(
                    [*problem.messages[:-1], {"role": "user", "content": asked}], deferral=True
                )
                sample = await sample_episode(
                    runner,
                    prompt,
                    seed=sample_seed(seed, problem.id, number),
                    episode_id=f"{problem.id}-{number}",
                    eager=settings.eager,
                )
                if sample.sandbox_failed:
                    return False
                score = await reward.score(sample.finished(is_void=False), problem.row)
                if score.value is None:
                    return False
                solution = judge(
                    sample, problem, number, score.value, engine.tokenizer, own, settings.max_errors
                )
                file.write(json.dumps(asdict(solution), ensure_ascii=False) + "\n")
                file.flush()
                on_solution(solution)
                return True

        tasks = [asyncio.create_task(solve(problem, number)) for problem, number in missing]
        try:
            has_verdict = await asyncio.gather(*tasks)
        except EngineError:
            for task in tasks:
                task.cancel()
            raise
    return has_verdict.count(False)


def judge(
    sample: Sample,
    problem: Problem,
    number: int,
    reward: float,
    tokenizer: Tokenizer,
    policy: DeferralPolicy,
    max_errors: int,
) -> SampledSolution:
    """Return the sample as a `SampledSolution`, kept if it is right and keeps to the protocol.

    Args:
        sample: the episode; its sandbox did not fail.
        problem: its problem.
        number: of the sample.
        reward: of the episode.
        tokenizer: of the model that sampled it.
        policy: of the sampled episode.
        max_errors: flushes that may have failed.
    """
    segments: tuple[Segment, ...] = ()
    if reward < 1:
        verdict = "wrong"
    elif not sample.tools:
        verdict = "no code ran"
    elif sum(tool.status != "ok" for tool in sample.tools) > max_errors or sample.tools[-1].status != "ok":
        verdict = "code failed"
    elif sample.outcome.is_truncated or sample.pending_blocks or sample.open_fence:
        verdict = "not finished"
    else:
        found = protocol_segments(sample, tokenizer, policy.marker)
        verdict = "protocol not kept" if found is None else "kept"
        segments = tuple(found or ())
    delayed = sum(max(len(tool.blocks) - 1, 0) for tool in sample.tools)
    return SampledSolution(problem.id, number, problem.question, reward, delayed, verdict, segments)


def protocol_segments(sample: Sample, tokenizer: Tokenizer, marker: str) -> list[Segment] | None:
    """Return the episode as the model should write it, or None if it can't be written so.

    Each written part but the last ends with a closed block and the marker. The last has the boxed answer and
    no code. Text that looks like an output was invented by the model.
    """
    parts = list(_runs(sample))
    if sum(not is_sampled for is_sampled, _ in parts) != len(sample.tools):
        return None  # a marker with nothing pending
    outputs = iter(tool.output for tool in sample.tools)
    segments: list[Segment] = []
    for index, (is_sampled, ids) in enumerate(parts):
        if not is_sampled:
            segments.append(Segment(next(outputs), "observed"))
            continue
        text = tokenizer.decode(list(ids))
        is_last = index == len(parts) - 1
        if is_last:
            text = _without_end(text)
        body = text.rstrip().removesuffix(marker).rstrip()
        if _OUTPUT_FENCE in body or marker in body:
            return None
        if not is_last:
            if not body.endswith("```"):
                return None
            segments.append(Segment(body.lstrip("\n") + marker, "written"))
        elif last_boxed(body) is None or "```" in body:
            return None
        else:
            segments.append(Segment(body.lstrip("\n"), "written"))
    return segments if len(segments) >= 3 else None


def _without_end(text: str) -> str:
    """Return ``text`` without an end-of-turn token such as ``<|im_end|>``."""
    head, bar, tail = text.rpartition("<|")
    return head if bar and tail.endswith("|>") and "\n" not in tail else text


def _runs(sample: Sample) -> Iterator[tuple[bool, Sequence[int]]]:
    """Yield alternating runs of sampled and inserted tokens."""
    start = 0
    for index in range(1, len(sample.ids) + 1):
        if index == len(sample.ids) or sample.sampled[index] != sample.sampled[start]:
            yield bool(sample.sampled[start]), sample.ids[start:index]
            start = index


def load_solutions(path: Path) -> list[SampledSolution]:
    """Read the results in ``path``, without a last line that was cut off. No file: no results."""
    return [_solution(json.loads(line)) for line in read_complete_lines(path, truncate=True)]


def _solution(values: dict[str, Any]) -> SampledSolution:
    segments = tuple(Segment(**segment) for segment in values.pop("segments"))
    return SampledSolution(**values, segments=segments)
