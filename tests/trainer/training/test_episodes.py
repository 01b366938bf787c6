from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling, TokenChunk
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from service.sandbox.base import ExecutionResult, OnOutput, Session, SessionLimits
from tests.support.reply_engine import ReplyEngine
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, ScriptedSession, printed
from trainer.training.chunked_lm_head import PolicyModel
from trainer.training.episodes import (
    EpisodeLostError,
    LocalRolloutWorker,
    RolloutSettings,
    Sample,
    rollout,
    sample_seed,
)

ASK = "Let\n```python\nx = 6 * 7\n```\nthen\n```python\nprint(x)\n```<tool_call>"
ANSWER = f"It is \\boxed{{42}}{EOS}"


def ask_then_answer(context: str) -> str:
    return ANSWER if "Code execution result" in context else ASK


def settings(**changes: object) -> RolloutSettings:
    values: dict[str, object] = {"policy": DeferralPolicy(), "sampling": Sampling(), "group_size": 2}
    return RolloutSettings(**{**values, **changes})  # type: ignore[arg-type]


def seeds_for(prompts: Sequence[object], group_size: int) -> list[list[int]]:
    return [[sample_seed(0, p, s) for s in range(group_size)] for p in range(len(prompts))]


async def run_all(
    engine: object, sandbox: object, prompts: Sequence[Sequence[int]], rollout_config: RolloutSettings
) -> list[Sample]:
    groups = rollout(
        prompts,
        LocalRolloutWorker(engine, sandbox, rollout_config),
        rollout_config,
        seeds=seeds_for(prompts, rollout_config.group_size),  # type: ignore[arg-type]
    )
    return [sample async for group in groups for sample in group]


def prompts(*texts: str) -> list[list[int]]:
    return [ScriptedEngine("").tokenizer.encode(text, allow_special=True) for text in texts]


async def test_sample_describes_episode() -> None:
    sandbox = ScriptedSandbox(lambda blocks: printed("42\n"))
    [sample, _] = await run_all(
        ReplyEngine(ask_then_answer), sandbox, prompts("6 * 7?"), settings(eager=False)
    )
    assert (sample.outcome, sample.answer, sample.is_valid) == (Outcome.ANSWER, "42", True)
    assert (sample.executed, sample.delayed) == (2, 1)
    assert (sample.tool_seconds, sample.hidden_seconds) == (0.2, pytest.approx(0.2))
    assert len(sample.ids) == len(sample.mask) == len(sample.logprobs)
    engine = ScriptedEngine("")
    written = [i for i, m in zip(sample.ids, sample.mask, strict=True) if m]
    given = [i for i, m in zip(sample.ids, sample.mask, strict=True) if not m]
    assert engine.tokenizer.decode(written) == ASK + ANSWER
    assert engine.tokenizer.decode(given) == "\nCode execution result: 42\n</tool_call>\n"
    assert sandbox.limits[0] == SessionLimits(run_limit_s=3.0, eager=False)
    assert all(session.closed for session in sandbox.sessions)


async def test_slow_call_does_not_block_batch() -> None:
    others_done = asyncio.Event()
    answered = 0

    def reply(context: str) -> str:
        nonlocal answered
        if "Code execution result" in context:
            answered += 1
            if answered == 5:
                others_done.set()
        return ask_then_answer(context)

    class Slow(ScriptedSession):
        async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
            await others_done.wait()  # not set if the others have to wait for this call
            return await super().flush(on_output)

    class SlowOnce(ScriptedSandbox):
        def session(self, limits: SessionLimits, tools: object = None) -> Session:
            if self.sessions:
                return super().session(limits)
            self.sessions.append(Slow(lambda blocks: printed("42")))
            return self.sessions[0]

    samples = await asyncio.wait_for(
        run_all(
            ReplyEngine(reply), SlowOnce(lambda blocks: printed("42")), prompts("a", "b", "c"), settings()
        ),
        30,
    )
    assert [sample.outcome for sample in samples] == [Outcome.ANSWER] * 6


async def test_groups_keep_order_of_prompts() -> None:
    sandbox = ScriptedSandbox(lambda blocks: printed("42"))
    samples = await run_all(
        ReplyEngine(ask_then_answer), sandbox, prompts("a", "b", "c"), settings(max_concurrent=2)
    )
    tokenizer = ScriptedEngine("").tokenizer
    assert [tokenizer.decode(sample.prompt_ids) for sample in samples] == ["a", "a", "b", "b", "c", "c"]


async def test_closing_generator_cancels_remaining_episodes() -> None:
    engine = ReplyEngine(lambda context: f"\\boxed{{1}}{EOS}" if context == "a" else "word " * 10**5)
    sandbox = ScriptedSandbox(lambda blocks: printed(""))
    both = prompts("a", "b")
    worker = LocalRolloutWorker(engine, sandbox, settings())
    async with aclosing(rollout(both, worker, settings(), seeds=seeds_for(both, 2))) as groups:
        first = await anext(groups)
    assert [sample.answer for sample in first] == ["1", "1"]
    assert engine.open_streams == 0
    assert all(session.closed for session in sandbox.sessions)


async def test_lost_episode_does_not_affect_others() -> None:
    class Leaky(LocalRolloutWorker):
        async def run_episode(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
            if seed == seeds[0][1]:
                raise EpisodeLostError("the host is gone")
            return await super().run_episode(prompt_ids, seed=seed, episode_id=episode_id)

    asked = prompts("a", "b")
    seeds = seeds_for(asked, 2)
    worker = Leaky(ReplyEngine(ask_then_answer), ScriptedSandbox(lambda b: printed("42")), settings())
    groups = [group async for group in rollout(asked, worker, settings(), seeds=seeds)]
    assert [[sample.seed for sample in group] for group in groups] == [seeds[0][:1], seeds[1]]


@pytest.mark.parametrize(("reply", "outcome"), [
    (f"no idea{EOS}", Outcome.VOID), ("word " * 100, Outcome.LENGTH), ("<tool_call>", Outcome.TURN_LIMIT),
])  # fmt: skip
async def test_void_and_cut_samples_are_masked(reply: str, outcome: Outcome) -> None:
    policy = DeferralPolicy(max_turn_tokens=100)
    engine = ReplyEngine(lambda context: reply)
    [sample, _] = await run_all(
        engine, ScriptedSandbox(lambda b: printed("")), prompts("?"), settings(policy=policy)
    )
    assert sample.outcome == outcome
    assert sum(sample.sampled) > 0
    assert sum(sample.mask) == 0


async def test_sample_with_sandbox_failure_is_masked() -> None:
    broken = ExecutionResult("", "", "sandbox_error", wall_seconds=0, waited_seconds=0)
    [sample, _] = await run_all(
        ReplyEngine(ask_then_answer), ScriptedSandbox(lambda blocks: broken), prompts("?"), settings()
    )
    assert sample.outcome == Outcome.ANSWER
    assert not sample.is_valid
    assert sum(sample.mask) == 0


async def test_immediate_mode_runs_at_every_block() -> None:
    def reply(context: str) -> str:
        return ANSWER if "Code execution result" in context else "```python\nprint(6 * 7)\n``` and on"

    sandbox = ScriptedSandbox(lambda blocks: printed("42"))
    rollout_config = settings(policy=DeferralPolicy(mode="immediate"))
    [sample, _] = await run_all(ReplyEngine(reply), sandbox, prompts("?"), rollout_config)
    assert (sample.executed, sample.delayed, sample.answer) == (1, 0, "42")
    assert "and on" not in sample.text


async def test_rejects_seeds_of_wrong_shape() -> None:
    worker = LocalRolloutWorker(
        ReplyEngine(ask_then_answer), ScriptedSandbox(lambda b: printed("")), settings()
    )
    groups = rollout(prompts("a"), worker, settings(), seeds=[[1]])
    with pytest.raises(ValueError, match=r"seeds must be \[1\]\[2\]"):
        await anext(groups)


async def test_rejects_tokenizer_without_marker() -> None:
    rollout_config = settings(policy=DeferralPolicy(marker="<run>"))
    with pytest.raises(ValueError, match="no token '<run>'"):
        await run_all(
            ReplyEngine(ask_then_answer), ScriptedSandbox(lambda b: printed("")), prompts("a"), rollout_config
        )


def test_seeds_depend_only_on_arguments() -> None:
    seeds = {sample_seed(*indices) for indices in [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 12), (0, 1, 3)]}
    assert len(seeds) == 5
    assert sample_seed(0, 1, 2) == sample_seed(0, 1, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


class RecordingEngine(TransformersEngine):
    """Engine that records the sampled ids by context, for comparison."""

    def __init__(self, settings: TransformersSettings) -> None:
        super().__init__(settings)
        self.record: dict[tuple[tuple[int, ...], int | None], list[int]] = {}

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        ids = self.record.setdefault((tuple(prompt_ids), sampling.seed), [])
        async with aclosing(super().generate(prompt_ids, sampling, stop_token_ids)) as chunks:
            async for chunk in chunks:
                ids += chunk.ids
                yield chunk


async def random_samples(checkpoint: Path) -> tuple[RecordingEngine, list[Sample]]:
    engine = RecordingEngine(TransformersSettings(model=str(checkpoint), device="cpu", threads=1))
    await engine.start()
    try:
        texts = ["What is 12 + 30?", "Let x = 3."]
        ids = [engine.tokenizer.render_chat([{"role": "user", "content": text}]) for text in texts]
        policy = DeferralPolicy(max_turn_tokens=150, max_episode_tokens=400)
        rollout_config = settings(policy=policy, sampling=Sampling(temperature=0.8), group_size=6)
        return engine, await run_all(engine, ScriptedSandbox(lambda blocks: printed("")), ids, rollout_config)
    finally:
        await engine.stop()


async def test_trained_ids_are_sampled_ids(tiny_checkpoint: Path) -> None:
    engine, samples = await random_samples(tiny_checkpoint)
    sampled = []
    for sample in samples:
        turns = [list(turn) for turn in _runs(sample)]
        sampled += turns
        context = list(sample.prompt_ids)
        for turn, given in zip(turns, [*_observations(sample), ()], strict=True):
            assert any(ids == turn and list(prompt) == context for (prompt, _), ids in engine.record.items())
            context += [*turn, *given]
        assert context == [*sample.prompt_ids, *sample.ids]
    assert sorted(sampled) == sorted(engine.record.values())
    assert any(_observations(sample) for sample in samples), (
        "no episode had an observation: nothing was proved"
    )


async def test_training_log_probs_match_engine(tiny_checkpoint: Path) -> None:
    engine, samples = await random_samples(tiny_checkpoint)
    policy = PolicyModel(AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval())
    marker = engine.tokenizer.token_id("<tool_call>")
    assert marker is not None
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.ids]])
        targets = torch.tensor([[0] * len(sample.prompt_ids) + list(sample.sampled)]).bool()
        with torch.no_grad():
            output = policy(ids, torch.ones_like(ids), targets, marker, 0.8)
        engines = torch.tensor([lp for lp, m in zip(sample.logprobs, sample.sampled, strict=True) if m])
        torch.testing.assert_close(output.log_probs, engines, atol=1e-4, rtol=0)


def _runs(sample: Sample) -> list[tuple[int, ...]]:
    """Return the turns: maximal runs of sampled tokens."""
    return [run for kind, run in _segments(sample) if kind]


def _observations(sample: Sample) -> list[tuple[int, ...]]:
    return [run for kind, run in _segments(sample) if not kind]


def _segments(sample: Sample) -> list[tuple[int, tuple[int, ...]]]:
    segments: list[tuple[int, tuple[int, ...]]] = []
    for token, kind in zip(sample.ids, sample.sampled, strict=True):
        if segments and segments[-1][0] == kind:
            segments[-1] = (kind, (*segments[-1][1], token))
        else:
            segments.append((kind, (token,)))
    return segments


async def test_the_wait_for_code_is_without_the_wait_for_a_container() -> None:
    [sample, _] = await run_all(
        ReplyEngine(ask_then_answer), ScriptedSandbox(lambda b: printed("42")), prompts("6 * 7?"), settings()
    )
    [tool] = sample.tools
    waited = [(50.0, 0.0), (50.0, 30.0), (50.0, 80.0)]
    tools = tuple(replace(tool, waited_ms=ms, container_wait_ms=container) for ms, container in waited)
    episode = replace(sample, tools=tools).finished(is_void=False)
    assert episode.tool_wait_seconds == pytest.approx(0.07)
    assert (episode.tokens, episode.tools) == (sum(sample.sampled), tools)
