"""The command ``ih-grpo eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from service.cli.output import abort

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_console = Console(stderr=True)


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Option(
            help="Checkpoint or PEFT adapter: a directory or a hub id. With --url: the model's name on the "
            "server."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Output directory for results and report. Rerun to resume.")],
    base: Annotated[
        str | None, typer.Option(help="Base model of an adapter. Default: the one that the adapter names.")
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Argument(
            help="Problems: parquet or JSON files, folders, hub ids such as org/name:config:split, or "
            "quickstart-held-out:200 for 200 generated ones. NAME=SOURCE sets the benchmark's name."
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="paper: the paper's six mathematical benchmarks. paper-other-domains: LogiQA, MMLU-Pro and "
            "three tasks of BBH, graded by letter."
        ),
    ] = None,
    suite_dir: Annotated[
        Path | None,
        typer.Option(help="Directory with local copies of the suite's benchmarks, such as aime24.parquet."),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="Reward that grades the responses: math, multiple_choice, exact_match, or an import path "
            "such as my_package.rewards:short. Default: the suite's choice, else math."
        ),
    ] = None,
    tools: Annotated[
        list[str] | None,
        typer.Option(
            "--tool",
            help="Tool that code can call: an import path such as my_package.tools:search, or the command or "
            "URL of an MCP server. May be repeated.",
        ),
    ] = None,
    python: Annotated[bool, typer.Option("--python/--no-python", help="Offer Python to the model.")] = True,
    thinking: Annotated[
        bool, typer.Option("--thinking", help="Let the model think before it answers.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible server to evaluate, with or without /v1. Default: run the model here."
        ),
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="API key for --url.", envvar="IHGRPO_API_KEY")] = None,
    instruction: Annotated[
        str | None,
        typer.Option(help="With --url: text before each problem. Not needed for `ih-grpo serve`."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples per problem. Default: as in the paper, 32 or 8 by benchmark.")
    ] = None,
    pass_at: Annotated[
        list[int] | None,
        typer.Option(help="Report pass@k and maj@k for this k too, in report.json. May be repeated."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only the first problems of each benchmark, up to this number.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; 0 is greedy. Default: 1.0.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling. Default: 0.7.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="With --url: maximum tokens per episode. Default: the server's limit.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all samples. Default: 0.")] = None,
    max_concurrent_episodes: Annotated[
        int | None, typer.Option(help="Number of concurrent episodes. Default: 64.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device of the model: auto, cpu or cuda. Default: auto.")
    ] = None,
    engine_dtype: Annotated[
        str | None,
        typer.Option(
            help="Dtype of the model here: auto, float32 or bfloat16. Default: auto, float32 on a CPU. "
            "bfloat16 is faster if the CPU supports it."
        ),
    ] = None,
    engine_slots: Annotated[
        int | None, typer.Option(help="Maximum number of sequences in one decoding batch. Default: 64.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads per operator. Default: chosen by torch.")
    ] = None,
    sandbox: Annotated[
        str | None,
        typer.Option(
            help="in-process (containers started here), runner (started by a runner service) or process "
            "(bubblewrap, without Docker). Default: in-process."
        ),
    ] = None,
    runner_address: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated addresses of runner services: host:port, wss://host:port (TLS) or "
            "unix:/path."
        ),
    ] = None,
    runner_token_file: Annotated[
        Path | None, typer.Option(help="File with the secret that is shared with the runners.")
    ] = None,
    runner_ca_file: Annotated[
        Path | None, typer.Option(help="Certificate authorities of the runners. Implies TLS.")
    ] = None,
    runner_cert_file: Annotated[
        Path | None, typer.Option(help="This client's certificate, if the runners require one.")
    ] = None,
    runner_key_file: Annotated[
        Path | None, typer.Option(help="Private key of this certificate. Default: in the same file.")
    ] = None,
    sandbox_image: Annotated[str | None, typer.Option(help="Image of the containers (in-process).")] = None,
    max_containers: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of concurrent containers. An episode keeps one from its first block to its "
            "end. Default: one per episode, as far as half of the memory suffices."
        ),
    ] = None,
) -> None:
    """Evaluate a checkpoint or a server on benchmarks: avg@k, pass@k, maj@k and tool usage.

    Results are saved as they arrive. Rerun the same command to resume an interrupted evaluation. The report
    is written to OUT/report.html and OUT/report.json. Compare two evaluations with `ih-grpo eval compare`.
    `ih-grpo eval select` writes the problems that the model solves sometimes, to train on.

    \b
    Examples:
      ih-grpo eval aime24.parquet math500.parquet --model checkpoints/quickstart --out runs/eval
      ih-grpo eval --suite paper --model Qwen/Qwen3-4B --out runs/eval-paper
      ih-grpo eval math500.parquet --model my-adapter --base /models/Qwen3-4B --out runs/eval-adapter
      ih-grpo eval TIGER-Lab/MMLU-Pro --reward multiple_choice --model Qwen/Qwen3-4B --out runs/eval-mmlu
      ih-grpo eval compare runs/eval-base runs/eval-trained
      ih-grpo eval aime24.parquet --url http://127.0.0.1:8000 --model quickstart --out runs/eval-served
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    from service.cli.output import explain
    from service.engines.base import EngineError
    from service.sandbox.base import SandboxError
    from trainer.data.problems import DataError
    from trainer.evaluation.backends import BackendError
    from trainer.evaluation.evaluate import EvalConfig
    from trainer.evaluation.results import ResultsError
    from trainer.evaluation.run import run_evaluation
    from trainer.training.run_files import DirectoryError

    try:
        run_evaluation(EvalConfig.model_validate(flags), _console)
    except ValidationError as error:
        abort(*explain(error))
    except KeyboardInterrupt:
        abort("interrupted: rerun the same command to resume")
    except (
        ValueError, DataError, ResultsError, DirectoryError, BackendError, EngineError, SandboxError
    ) as error:  # fmt: skip
        abort(str(error))
    _console.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True)
