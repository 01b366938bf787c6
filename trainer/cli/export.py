"""The command ``ih-grpo train export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.cli.output import abort


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Checkpoint of a run that trained an adapter, such as RUN_DIR/checkpoints/best."),
    ],
    out: Annotated[Path, typer.Argument(help="Directory to create.")],
    base: Annotated[
        str | None,
        typer.Option(help="Base model: directory or hub id. Default: the one that the adapter names."),
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option(
            help="Hub id of the base model to write into the adapter. Default: the one that it names."
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the base model for the model card, such as apache-2.0.")
    ] = None,
    recipe: Annotated[
        list[Path] | None,
        typer.Option(help="Recipe to include in the model card. May be repeated, in the order of the runs."),
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option(
            help="Markdown file to include in the model card, with sections such as Data and Results."
        ),
    ] = None,
) -> None:
    """Export a trained adapter for publication.

    Writes the weights in bfloat16, the protocol (deferral.json), fingerprint and sample of the base model
    (base.json) and a model card, without optimiser state. The tokenizer is left out if it is the base's.

    \b
    Example:
      ih-grpo train export runs/qwen2.5-coder-0.5b/checkpoints/best my-adapter --licence apache-2.0
      ih-grpo serve --model my-adapter
    """
    from trainer.training.adapter_export import CardText, export_adapter

    card = CardText(licence, tuple(recipe or ()), notes)
    try:
        size = export_adapter(checkpoint, out, base=base, base_name=base_name, card=card)
    except (ValueError, OSError) as error:
        abort(str(error))
    Console(stderr=True).print(
        f"{size / 1e6:.1f} MB: ih-grpo serve --model {out}", highlight=False, soft_wrap=True
    )
