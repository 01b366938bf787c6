"""The table of results of a model, from finished evaluations.

    python benchmarks/results.py results.toml --out docs/results.md

The TOML file names the evaluations (directories that were used as ``--out`` of `ih-grpo eval`) by column:

    title = "Qwen2.5-Coder-0.5B-Instruct"
    baseline = "plain prompt"                # the column that all others are compared with
    pass_at = [1, 4]                         # default: 1 and the largest number of samples
    notes = ["Only the first 150 problems were run."]      # optional

    [[columns]]
    name = "plain prompt"
    best_of = ["runs/eval-plain-1", "runs/eval-plain-2"]   # prompts; the best one of each benchmark counts
    requests = "runs/chat-base/requests-plain.jsonl"       # optional: replies of benchmarks/real_model.py

    [[columns]]
    name = "IH-GRPO"
    runs = ["runs/eval-ih-grpo-0", "runs/eval-ih-grpo-1"]  # seeds; all of them count

Evaluations may have different benchmarks, problems and numbers of samples. Differences use the problems that
both columns have. A column without an evaluation of a benchmark is shown as "not run".
"""

from __future__ import annotations

import argparse
import json
import textwrap
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import describe_machine
from tests.real_model.judge import judge, load
from trainer.evaluation.compare import BenchmarkComparison, compare_benchmark
from trainer.evaluation.results import EvalResult, ResultsError, read_results
from trainer.evaluation.scores import Scores, score
from trainer.evaluation.statistics import Interval

NOT_RUN: Final = "not run"
_FIELDS: Final = {"name", "runs", "best_of", "requests"}
_TOP_FIELDS: Final = {"title", "baseline", "pass_at", "machine", "notes", "columns"}


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation: results by benchmark."""

    directory: Path
    settings: Mapping[str, Any]
    benchmarks: Mapping[str, Sequence[EvalResult]]
    missing: int
    """Results that the evaluation has not finished."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table."""

    name: str
    runs: tuple[Run, ...]
    takes_best: bool
    """Whether the runs are alternatives, of which the best one counts, instead of seeds."""
    requests: Path | None
    """Replies to ordinary requests, in JSON Lines."""

    def runs_of(self, benchmark: str) -> tuple[Run, ...]:
        """Return the runs that count for a benchmark."""
        having = [run for run in self.runs if benchmark in run.benchmarks]
        if self.takes_best and having:
            return (max(having, key=lambda run: score(benchmark, run.benchmarks[benchmark]).accuracy),)
        return tuple(having)

    def results_of(self, benchmark: str) -> list[list[EvalResult]]:
        """Return the results of each run that counts, on the problems that all of them have."""
        results = [list(run.benchmarks[benchmark]) for run in self.runs_of(benchmark)]
        if not results:
            return []
        shared = set.intersection(*({result.problem_id for result in one} for one in results))
        return [[result for result in one if result.problem_id in shared] for one in results]


@dataclass(frozen=True, slots=True)
class Cell:
    """One benchmark in one column."""

    scores: Scores
    """Of all runs together."""
    runs: tuple[Scores, ...]
    difference: BenchmarkComparison | None
    """From the baseline; None for the baseline itself, and if it has no problem in common."""
    waited: float | None
    """Seconds per episode that the model waited for code; None if no episode reports tools."""
    hidden: float | None
    """Seconds of running code per episode that overlapped with generation."""

    def pass_at(self, k: int) -> float | None:
        """Return the mean of pass@k over the runs; None if a run has fewer samples."""
        found = [run.pass_at.get(k) for run in self.runs]
        return None if None in found else sum(value or 0.0 for value in found) / len(found)


def read_columns(path: Path) -> tuple[dict[str, Any], list[Column]]:
    """Read the TOML file and the evaluations that exist.

    Raises:
        SystemExit: a field is unknown or missing, or the baseline is not a column.
    """
    fields = tomllib.loads(path.read_text(encoding="utf-8"))
    _check(fields, _TOP_FIELDS, str(path))
    columns = []
    for entry in fields.get("columns", []):
        _check(entry, _FIELDS, f"{path}, column {entry.get('name')!r}")
        if "name" not in entry or ("runs" in entry and "best_of" in entry):
            raise SystemExit(f"{path}: a column needs a name, and either runs or best_of")
        runs = [_read_run(Path(run)) for run in entry.get("runs", entry.get("best_of", []))]
        columns.append(
            Column(
                entry["name"],
                tuple(run for run in runs if run is not None),
                "best_of" in entry,
                Path(entry["requests"]) if "requests" in entry else None,
            )
        )
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        raise SystemExit(f"{path}: two columns have the same name")
    if (baseline := fields.get("baseline")) is not None and baseline not in names:
        raise SystemExit(f"{path}: baseline {baseline!r} is not a column")
    return fields, columns


def _check(fields: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(fields.keys() - known):
        raise SystemExit(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(sorted(known))}")


def _read_run(directory: Path) -> Run | None:
    try:
        settings, results = read_results(directory)
    except ResultsError:
        if directory.exists():
            raise
        return None
    benchmarks: dict[str, list[EvalResult]] = {}
    for result in results:
        benchmarks.setdefault(result.benchmark, []).append(result)
    report = directory / "report.json"
    missing = json.loads(report.read_text(encoding="utf-8"))["missing_attempts"] if report.is_file() else 0
    return Run(directory, settings, benchmarks, missing)


def make_cell(benchmark: str, column: Column, baseline: Column | None, ks: Sequence[int]) -> Cell | None:
    """Return the figures of a benchmark in a column, or None if it was not run."""
    results = column.results_of(benchmark)
    if not any(results):
        return None
    pooled = [result for run in results for result in run]
    difference = None
    if baseline is not None and baseline is not column:
        compared = [result for run in baseline.results_of(benchmark) for result in run]
        if {r.problem_id for r in compared} & {r.problem_id for r in pooled}:
            difference = compare_benchmark(benchmark, compared, pooled)
    tools = [result for result in pooled if result.tool_seconds is not None]
    hidden = sum(result.hidden_seconds or 0.0 for result in tools) / len(tools) if tools else None
    total = sum(result.tool_seconds or 0.0 for result in tools) / len(tools) if tools else None
    return Cell(
        score(benchmark, pooled),
        tuple(score(benchmark, run, ks) for run in results),
        difference,
        None if total is None or hidden is None else max(total - hidden, 0.0),
        hidden,
    )


def render(fields: Mapping[str, Any], columns: Sequence[Column], source: str) -> str:
    """Return the page in Markdown."""
    baseline = next((column for column in columns if column.name == fields.get("baseline")), None)
    found = [result for column in columns for run in column.runs for result in run.benchmarks]
    benchmarks = list(dict.fromkeys(found))
    parts = [f"# {fields.get('title', 'Results')}", _introduction(baseline)]
    for benchmark in benchmarks:
        parts += [f"## {benchmark}", _benchmark_table(benchmark, columns, baseline, fields.get("pass_at"))]
    if any(column.requests for column in columns):
        parts += ["## Ordinary requests", _requests_table(columns)]
    notes = [*fields.get("notes", ()), *(note for column in columns for note in _notes(column))]
    if notes:
        parts += ["## Notes", "\n".join(_wrapped(f"- {note}", "  ") for note in dict.fromkeys(notes))]
    machine = fields.get("machine") or describe_machine(
        "ih-grpo", "torch", "transformers", "peft", "trl", "vllm"
    )
    parts += [
        "## How these numbers were made",
        f"`python benchmarks/results.py {source}`",
        f"Machine: {machine}.",
        _OTHER_EXPERIMENTS,
    ]
    return "\n\n".join(parts) + "\n"


_OTHER_EXPERIMENTS: Final = """\
## Other experiments

![Correct answers, searches per flush, flushes and seconds waited over the steps](images/tools.svg)

[Learning with a tool](reference/tool-learning.md): a small model learns from reward to make its searches
together and to ask for their results late.

[Deferred code with this model](reference/benchmarks.md#deferred-code-with-a-real-model): seconds and tokens
of an episode if code runs immediately, deferred, or deferred with eager execution.

The [learning experiment](reference/learning-experiment.md) compares three methods on a small model."""


def _introduction(baseline: Column | None) -> str:
    text = (
        "Accuracy is avg@k in %, with a 95 % bootstrap interval over problems. The delay rate counts only "
        "flushes that the model requested. Tokens, flushes and seconds are means per episode."
    )
    if baseline is not None:
        text += (
            f" Differences are paired: they compare each problem with the same problem under "
            f'"{baseline.name}", with a bootstrap interval over problems and a sign-flip test.'
        )
    return _wrapped(text)


def _benchmark_table(
    benchmark: str, columns: Sequence[Column], baseline: Column | None, pass_at: Sequence[int] | None
) -> str:
    ks = list(pass_at or ())
    cells = [make_cell(benchmark, column, baseline, ks) for column in columns]
    present = [run.samples for cell in cells if cell is not None for run in cell.runs]
    ks = sorted(set(ks) or {1, max(present)})
    seeds = any(cell is not None and len(cell.runs) > 1 for cell in cells)
    rows: list[tuple[str, Callable[[Cell], str]]] = [
        ("problems × samples", lambda cell: _size(cell)),
        ("accuracy", lambda cell: _with_interval(cell.scores.accuracy, cell.scores.accuracy_interval)),
    ]
    if seeds:
        rows.append(("accuracy of each run", lambda cell: ", ".join(_percent(r.accuracy) for r in cell.runs)))
    if baseline is not None:
        rows.append((f"difference from {baseline.name}", _difference))
        rows.append(("p, problems compared", _p_value))
    rows += [(f"pass@{k}", lambda cell, k=k: _percent(cell.pass_at(k))) for k in ks]  # type: ignore[misc]
    rows += [
        ("delay rate", lambda cell: _percent(cell.scores.delay_rate)),
        ("flushes", lambda cell: _number(cell.scores.flushes, 2)),
        ("tokens", lambda cell: _number(cell.scores.tokens, 0)),
        ("flushes with an error", lambda cell: _percent(cell.scores.tool_error_rate)),
        ("seconds waited for code", lambda cell: _number(cell.waited, 3)),
        ("seconds of code hidden", lambda cell: _number(cell.hidden, 3)),
        ("cut by a limit", lambda cell: _percent(cell.scores.cut)),
        ("without an answer", lambda cell: _percent(cell.scores.unanswered)),
    ]
    body = [[label, *(NOT_RUN if cell is None else show(cell) for cell in cells)] for label, show in rows]
    return _table(["", *(column.name for column in columns)], body)


def _size(cell: Cell) -> str:
    runs = f" × {len(cell.runs)} runs" if len(cell.runs) > 1 else ""
    return f"{cell.scores.problems} × {min(run.samples for run in cell.runs)}{runs}"


def _difference(cell: Cell) -> str:
    if cell.difference is None:
        return "-"
    found = cell.difference.difference
    ends = (
        ""
        if found.interval is None
        else f" ({100 * found.interval[0]:+.1f} to {100 * found.interval[1]:+.1f})"
    )
    return f"{100 * found.mean:+.1f}{ends}"


def _p_value(cell: Cell) -> str:
    if cell.difference is None:
        return "-"
    return f"{cell.difference.difference.p_text}, {cell.difference.problems}"


def _requests_table(columns: Sequence[Column]) -> str:
    """Return the table of the ordinary requests of ``tests/real_model/requests.jsonl``."""
    judged = [_judge_replies(column.requests) for column in columns]
    labels = list(next((found for found in judged if found is not None), {}))
    body = [[label, *(NOT_RUN if found is None else found[label] for found in judged)] for label in labels]
    return _table(["", *(column.name for column in columns)], body)


def _judge_replies(path: Path | None) -> dict[str, str] | None:
    if path is None or not path.is_file():
        return None
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    messages = {row["key"]: row["reply"]["choices"][0]["message"] for row in lines}
    pairs = [(request, judge(request, messages[request.id])) for request in load() if request.id in messages]
    needing = [verdict for request, verdict in pairs if request.needs_execution]
    others = [verdict for request, verdict in pairs if not request.needs_execution]
    return {
        "requests": str(len(pairs)),
        "code ran although none was needed": f"{sum(v.unneeded_execution for v in others)} of {len(others)}",
        "code did not run although it was needed": (
            f"{sum(v.missing_execution for v in needing)} of {len(needing)}"
        ),
        "right answers of those that need code": f"{sum(bool(v.right) for v in needing)} of {len(needing)}",
        "code left pending": str(sum(v.pending_code for _, v in pairs)),
        "empty replies": str(sum(v.empty for _, v in pairs)),
    }


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _notes(column: Column) -> list[str]:
    notes = []
    for run in column.runs:
        if run.missing:
            notes.append(
                f"{column.name}: {run.missing:,} results are missing, the evaluation is not finished."
            )
        limits = [f"temperature {run.settings.get('temperature')}", f"top-p {run.settings.get('top_p')}"]
        if run.settings.get("max_tokens"):
            limits.append(f"at most {run.settings['max_tokens']:,} tokens")
        if not run.settings.get("python", True):
            limits.append("without Python")
        notes.append(f"{column.name}: {', '.join(limits)}.")
    if column.takes_best and column.runs:
        notes.append(f"{column.name}: the best of {len(column.runs)} evaluations, by benchmark.")
    return notes


def _with_interval(value: float, ends: Interval | None) -> str:
    return (
        _percent(value) if ends is None else f"{_percent(value)} ({_percent(ends[0])} to {_percent(ends[1])})"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("columns", type=Path, help="TOML file with the evaluations of each column")
    parser.add_argument("--out", type=Path, help="Markdown file to write; default: print it")
    args = parser.parse_args()
    fields, columns = read_columns(args.columns)
    text = render(fields, columns, args.columns.name)
    if args.out is None:
        print(text, end="")
    else:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
