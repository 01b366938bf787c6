"""``ih-grpo merge``: write a PEFT adapter and its base model as one plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.cli.output import abort

_console = Console(stderr=True)


def merge(
    adapter: Annotated[Path, typer.Argument(help="Directory of the adapter.")],
    out: Annotated[Path, typer.Argument(help="Directory to create for the merged checkpoint.")],
    base: Annotated[
        str | None,
        typer.Option(help="Base model: directory or hub id. Default: the one that the adapter names."),
    ] = None,
) -> None:
    """Merge a PEFT adapter into its base model.

    Writes a checkpoint in the Hugging Face format to OUT, with the adapter's deferral.json, for other
    programs that read such checkpoints. `ih-grpo serve` merges adapters itself.

    \b
    Example:
      ih-grpo merge runs/warm-start/checkpoints/checkpoint-120 merged --base Qwen/Qwen2.5-Coder-0.5B-Instruct
      ih-grpo serve --model merged
    """
    try:
        from service.engines import adapters
        from service.engines.model_lookup import base_of

        if not adapters.is_adapter(adapter):
            abort(f"{adapter} is not an adapter: it has no {adapters.CONFIG}")
        adapters.merge_into(adapter, base_of(adapter, base), out)
    except ModuleNotFoundError as error:
        abort(f"merging needs {error.name}, which is not installed: pip install 'ih-grpo[cpu]'")
    except (ValueError, OSError) as error:
        abort(str(error))
    _console.print(f"merged: ih-grpo serve --model {out}", highlight=False, soft_wrap=True)
