from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.tokenizer import HFTokenizer
from service.episode.events import ExecutedTool, InvokedBlock
from service.sandbox.base import ExecutionResult
from tests.support.scripted import ScriptedSandbox
from tests.support.tiny_qwen3 import make_tokenizer
from trainer.data.problems import Problem
from trainer.quickstart.traces import Notebook, Segment
from trainer.rewards.registry import RewardSet, Verdict
from trainer.training.episodes import Sample
from trainer.warm_start.solved import (
    SolvedSettings,
    judge,
    load_solutions,
    read_problems,
    sample_solutions,
)

QUICKSTART = Path(__file__).parents[3] / "checkpoints" / "quickstart"
POLICY = DeferralPolicy()
PROBLEM = Problem("p:0", "What is 6 * 7?", "42")
BLOCK = "```python\nprint(6 * 7)\n```"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(directory)
    return HFTokenizer(str(directory))


def tool(status: str = "ok", blocks: int = 1) -> ExecutedTool:
    block = InvokedBlock(code="print(6 * 7)", invoked_at_token=5, invoked_at=0.0)
    return ExecutedTool(
        id="t", blocks=(block,) * blocks, delayed=0, output="42\n", status=status,  # type: ignore[arg-type]
        started_at=1.0, finished_at=2.0, flushed_at=2.0, wall_ms=1.0, waited_ms=1.0,
    )  # fmt: skip


def sample(tokenizer: HFTokenizer, *parts: str, tools: tuple[ExecutedTool, ...] = (tool(),)) -> Sample:
    """An episode whose parts are sampled and observed in turn."""
    ids: list[int] = []
    sampled: list[int] = []
    for index, part in enumerate(parts):
        piece = tokenizer.encode(part, allow_special=True)
        ids += piece
        sampled += [1 - index % 2] * len(piece)
    return Sample(
        prompt_ids=(1,), ids=tuple(ids), sampled=tuple(sampled), logprobs=(0.0,) * len(ids),
        text="".join(parts), outcome=Outcome.ANSWER, answer="42", tools=tools, seconds=1.0, seed=0,
    )  # fmt: skip


def verdict(tokenizer: HFTokenizer, *parts: str, reward: float = 1.0, **changes: object) -> str:
    episode = sample(tokenizer, *parts, **changes)  # type: ignore[arg-type]
    return judge(episode, PROBLEM, 0, reward, tokenizer, POLICY, 1).verdict


def test_a_turn_without_a_marker_gets_one(tokenizer: HFTokenizer) -> None:
    observed = "\n```output\n42\n```\n"
    ended = sample(tokenizer, f"I multiply.\n{BLOCK}\n\n", observed, "So \\boxed{42}.<|im_end|>")
    marked = sample(tokenizer, f"I multiply.\n{BLOCK}<tool_call>", observed, "So \\boxed{42}.<|im_end|>")
    expected = (
        Segment(f"I multiply.\n{BLOCK}<tool_call>", "written"),
        Segment("42\n", "observed"),
        Segment("So \\boxed{42}.", "written"),
    )
    for episode in (ended, marked):
        solution = judge(episode, PROBLEM, 3, 1.0, tokenizer, POLICY, 0)
        assert (solution.verdict, solution.segments, solution.sample) == ("kept", expected, 3)


def test_reasons_to_reject(tokenizer: HFTokenizer) -> None:
    good = (f"{BLOCK}<tool_call>", "42", "\\boxed{42}")
    assert verdict(tokenizer, *good) == "kept"
    assert verdict(tokenizer, *good, reward=0.0) == "wrong"
    assert verdict(tokenizer, "\\boxed{42}", tools=()) == "no code ran"
    assert verdict(tokenizer, *good, tools=(tool("error"),)) == "code failed"
    invented = f"{BLOCK}\n```output\n41\n```\n{BLOCK}"
    assert verdict(tokenizer, invented, "42", "\\boxed{42}") == "protocol not kept"
    assert verdict(tokenizer, f"{BLOCK} and so on", "42", "\\boxed{42}") == "protocol not kept"
    assert verdict(tokenizer, f"{BLOCK}", "42", "it is 42") == "protocol not kept"
    assert verdict(tokenizer, f"{BLOCK}", "42", f"\\boxed{{42}} {BLOCK}") == "protocol not kept"
    assert verdict(tokenizer, f"{BLOCK}<tool_call>", "x", "<tool_call>", "y", "\\boxed{42}") == (
        "protocol not kept"
    )


def test_delayed_blocks_are_counted(tokenizer: HFTokenizer) -> None:
    episode = sample(tokenizer, f"{BLOCK}\nthen\n{BLOCK}", "42", "\\boxed{42}", tools=(tool(blocks=2),))
    assert judge(episode, PROBLEM, 0, 1.0, tokenizer, POLICY, 0).delayed == 1


def notebook(blocks: list[str]) -> ExecutionResult:
    return Notebook().run("\n".join(blocks))


async def test_solutions_are_sampled_once_and_kept_if_right(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {a} times {b}?", "answer": str(a * b)}
        for a, b in ((4321, 1234), (812, 99931), (7071, 811), (123456, 71))
    ]
    rows.append({"question": "What is 12345 times 1001?", "answer": "5"})
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = SolvedSettings(
        problems=(str(data),), samples=2, device="cpu", engine_slots=4, threads=1, max_concurrent_episodes=4
    )
    policy = DeferralPolicy.load(QUICKSTART)
    path = tmp_path / "solved.jsonl"

    async def run() -> list[str]:
        new: list[str] = []
        sandbox = ScriptedSandbox(notebook)
        await sample_solutions(
            settings, read_problems(settings, 0), QUICKSTART, policy, path, seed=0,
            on_solution=lambda solution: new.append(solution.verdict), sandbox=sandbox,
        )  # fmt: skip
        return new

    verdicts = await run()
    assert len(verdicts) == 10
    assert verdicts.count("kept") >= 4
    solutions = load_solutions(path)
    assert len(solutions) == 10
    for solution in solutions:
        if solution.is_kept:
            assert solution.segments[0].text.endswith("```<tool_call>")
            assert "\\boxed{" in solution.segments[-1].text
            assert solution.question != rows[-1]["question"]
    assert await run() == []
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:10])  # a run that was killed while it wrote
    assert len(await run()) == 2


async def test_failures_of_sandbox_and_reward_are_sampled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "problems.jsonl"
    data.write_text(json.dumps({"question": "What is 4321 times 1234?", "answer": "5332114"}) + "\n")
    settings = SolvedSettings(
        problems=(str(data),), samples=4, device="cpu", engine_slots=4, threads=1, max_concurrent_episodes=4
    )
    policy = DeferralPolicy.load(QUICKSTART)
    path = tmp_path / "solved.jsonl"
    problems = read_problems(settings, 0)
    failed = ExecutionResult("", "lost", "sandbox_error", wall_seconds=0.0, waited_seconds=0.0)
    answers = iter([failed, failed])

    async def run() -> int:
        sandbox = ScriptedSandbox(lambda blocks: next(answers, None) or notebook(blocks))
        return await sample_solutions(settings, problems, QUICKSTART, policy, path, seed=0, sandbox=sandbox)

    without_verdict = await run()
    assert without_verdict in (1, 2)  # one episode may have both
    assert len(load_solutions(path)) == 4 - without_verdict
    lines = path.read_text()

    async def no_verdict(*_: object) -> Verdict:
        return Verdict(None, "timeout", {})

    with monkeypatch.context() as patched:
        patched.setattr(RewardSet, "score", no_verdict)
        assert await run() == without_verdict
    assert path.read_text() == lines
    assert await run() == 0
    assert len({solution.sample for solution in load_solutions(path)}) == 4


def test_problems_are_drawn_at_random_and_decontaminated(tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    questions = [f"Problem {i}: what is {i} + 1?" for i in range(30)] + [f"{words} what is 3 * 4?"]
    data, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps({"question": q, "answer": "12"}) + "\n" for q in questions))
    test.write_text(json.dumps({"question": f"{words} what is 3 * 4?", "answer": "12"}) + "\n")
    settings = SolvedSettings(problems=(str(data),), max_problems=40)
    drawn = read_problems(settings, 0)
    assert len(drawn) == 31
    assert drawn == read_problems(settings, 0)
    assert drawn != read_problems(settings, 1)
    clean = read_problems(settings.model_copy(update={"decontaminate": (str(test),)}), 0)
    assert len(clean) == 30
    assert len(read_problems(settings.model_copy(update={"max_problems": 5}), 0)) == 5
