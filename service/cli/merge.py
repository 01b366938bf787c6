"""``ih-grpo merge``: write a PEFT adapter and its base model as one plain checkpoint, or as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.cli.output import abort, warn
from service.engines.gguf_metadata import WeightType

_console = Console(stderr=True)


def merge(
    adapter: Annotated[
        Path, typer.Argument(help="Directory of the adapter; with --gguf also of a full checkpoint.")
    ],
    out: Annotated[
        Path | None,
        typer.Argument(help="Directory to create for the merged checkpoint. Optional with --gguf."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model: directory or hub id. Default: the one that the adapter names."),
    ] = None,
    gguf: Annotated[
        Path | None, typer.Option(help="GGUF file to create, for llama.cpp and `ih-grpo serve`.")
    ] = None,
    gguf_type: Annotated[WeightType, typer.Option(help="Type of its matrices.")] = "f16",
) -> None:
    """Merge a PEFT adapter into its base model.

    Writes a checkpoint in the Hugging Face format to OUT, with the adapter's deferral.json, for other
    programs that read such checkpoints. `ih-grpo serve` merges adapters itself.

    With --gguf, writes a GGUF file, and the deferral.json beside it as FILE.deferral.json. llama.cpp's
    llama-quantize makes smaller types from it.

    \b
    Examples:
      ih-grpo merge runs/warm-start/checkpoints/checkpoint-120 merged --base Qwen/Qwen2.5-Coder-0.5B-Instruct
      ih-grpo serve --model merged
      ih-grpo merge runs/warm-start/checkpoints/checkpoint-120 --gguf mine.gguf --gguf-type q8_0
      ih-grpo serve --model mine.gguf
    """
    try:
        from service.engines import adapters
        from service.engines.model_lookup import base_of

        if out is None and gguf is None:
            abort("nothing to write: give OUT or --gguf FILE")
        if gguf is not None:
            _check_gguf(gguf)
        if out is not None:
            if not adapters.is_adapter(adapter):
                abort(f"{adapter} is not an adapter: it has no {adapters.CONFIG}")
            adapters.merge_into(adapter, base_of(adapter, base), out)
            _console.print(f"merged: ih-grpo serve --model {out}", highlight=False, soft_wrap=True)
        if gguf is not None:
            _write_gguf(out or adapter, None if out else base, gguf, gguf_type)
    except ModuleNotFoundError as error:
        extra = "gguf" if error.name == "gguf" else "ih-grpo[cpu]"
        abort(f"merging needs {error.name}, which is not installed: pip install '{extra}'")
    except (ValueError, OSError) as error:
        abort(str(error))


def _check_gguf(path: Path) -> None:
    from service.engines.checkpoint import is_gguf

    if not is_gguf(path):
        abort(f"{path} must end in .gguf: ih-grpo serve recognises the format by this")
    if path.exists():
        abort(f"{path} already exists: choose another file")


def _write_gguf(model: Path, base: str | None, path: Path, kind: WeightType) -> None:
    from service.engines.base import EngineError
    from service.engines.gguf.export import export
    from service.engines.model_lookup import locate

    try:
        with _console.status("Writing the GGUF file"):
            written = export(locate(str(model), base=base), path, kind)
    except EngineError as error:
        abort(str(error))
    if not written.is_split_known:
        warn(
            "llama.cpp does not know how this tokenizer splits text: other programs encode some text "
            "differently. ih-grpo reads the original tokenizer from the file"
        )
    _console.print(f"written: ih-grpo serve --model {path}", highlight=False, soft_wrap=True)
