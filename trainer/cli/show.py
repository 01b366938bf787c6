"""The command ``ih-grpo show``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.api.chat.choice_builder import executed_tool
from service.cli.output import abort, sanitize
from service.cli.timeline import episode_spans, timeline
from service.playground.record import episode_record, fragment, standalone
from trainer.data.problems import DataError
from trainer.training.run_files import RolloutRecord, read_rollout

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="Saved rollout: a parquet file in RUN_DIR/rollouts.")],
    row: Annotated[
        int | None, typer.Option(min=0, help="Show the episode in this row. Default: list all episodes.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="With --row: write the episode to a self-contained HTML page.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="With --row: print a link that replays the episode in this server's playground."),
    ] = None,
) -> None:
    """List the episodes of a saved rollout, or show one episode with its timeline.

    \b
    Examples:
      ih-grpo show runs/x/rollouts/rollout-000000.parquet
      ih-grpo show runs/x/rollouts/rollout-000000.parquet --row 3 --html episode.html
    """
    console = Console(highlight=False)
    try:
        records = read_rollout(path)
        if row is not None and row >= len(records):
            raise DataError(f"{path} has {len(records)} rows: --row must be at most {len(records) - 1}")
        if row is None and (html or url):
            raise DataError("--row is missing: --html and --url need an episode")
    except DataError as error:
        abort(str(error))
    if row is None:
        console.print(_table(records))
        return
    record = records[row]
    _print_episode(console, record)
    if html is not None:
        html.write_text(standalone(_episode(record)), encoding="utf-8")
        console.print(f"\nwritten: {html}", soft_wrap=True)
    if url is not None:
        console.print(f"\n{url.rstrip('/')}/{fragment(_episode(record))}", soft_wrap=True, markup=False)


def _table(records: list[RolloutRecord]) -> Table:
    table = Table()
    for name in ("row", "problem", "reward", "reason", "outcome", "flushes", "delayed", "seconds"):
        table.add_column(name, justify="left" if name in ("problem", "reason", "outcome") else "right")
    for index, record in enumerate(records):
        blocks = sum(len(tool.blocks) for tool in record.tools)
        table.add_row(
            str(index),
            sanitize(record.problem_id),
            "-" if record.reward is None else f"{record.reward:g}",
            record.reason,
            record.outcome.value,
            str(len(record.tools)),
            f"{sum(tool.delayed for tool in record.tools)} of {blocks}",
            f"{record.seconds:.2f}",
        )
    return table


def _print_episode(console: Console, record: RolloutRecord) -> None:
    console.print(sanitize(record.question), style="bold", markup=False)
    console.print()
    console.print(sanitize(record.text.strip()), markup=False, soft_wrap=True)
    console.print()
    reward = "none" if record.reward is None else f"{record.reward:g} ({record.reason})"
    advantage = "none" if record.advantage is None else f"{record.advantage:+.3f}"
    console.print(f"{record.outcome.value}, reward {reward}, advantage {advantage}, gold {record.gold!r}")
    if len(record.rewards) > 1:
        console.print("rewards: " + ", ".join(_part(name, part) for name, part in record.rewards.items()))
    console.print()
    spans = episode_spans(record.began_at, record.began_at + record.seconds, _tools(record))
    console.print(timeline(spans, width=max(console.width - 24, 20)))


def _part(name: str, part: Mapping[str, Any]) -> str:
    value = "none" if part["value"] is None else f"{part['value']:g}"
    return sanitize(f"{name} {value} ({part['reason']})")


def _tools(record: RolloutRecord) -> list[dict[str, Any]]:
    return [dict(executed_tool(tool, index)) for index, tool in enumerate(record.tools)]


def _episode(record: RolloutRecord) -> dict[str, Any]:
    return episode_record(
        model=f"rollout, problem {record.problem_id}",
        question=record.question,
        text=record.text,
        tools=_tools(record),
        began_at=record.began_at,
        seconds=record.seconds,
        finish="length" if record.outcome.is_truncated else "stop",
    )
