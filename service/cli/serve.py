"""``ih-grpo serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from service.cli.output import abort, explain, warn


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint or PEFT adapter: a directory or a hub id; or a GGUF file. Default: the "
            "quickstart checkpoint."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model of an adapter. Default: the one that the adapter names.")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="Model name in the API.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, transformers, gguf, vllm or remote.")] = None,
    engine_url: Annotated[
        list[str] | None, typer.Option(help="URL of a vLLM server to sample on (remote); repeatable.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DIRECTORY of a LoRA adapter to serve beside the model; repeatable."),
    ] = None,
    vllm_arg: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a vLLM engine argument; repeatable.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one. Default: 8000.")] = None,
    sandbox: Annotated[
        str | None,
        typer.Option(
            help="Sandbox for code: 'runner', a separate service; 'in-process', containers started by this "
            "server (loopback only); or 'process', bubblewrap. Default: runner if one is configured or "
            "the host is not loopback, else in-process."
        ),
    ] = None,
    accept_weaker_isolation: Annotated[
        bool | None,
        typer.Option(
            "--accept-weaker-isolation",
            help="Allow sandbox 'process', which isolates less than containers (loopback only).",
        ),
    ] = None,
    runner_url: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated addresses of runners: unix:/path/to.sock, host:port or "
            "wss://host:port (TLS)."
        ),
    ] = None,
    runner_token_file: Annotated[
        Path | None, typer.Option(help="File with the secret shared with the runners.")
    ] = None,
    runner_ca_file: Annotated[
        Path | None, typer.Option(help="Certificate authorities of the runners. Implies TLS.")
    ] = None,
    runner_cert_file: Annotated[
        Path | None, typer.Option(help="This server's certificate, if the runners require one.")
    ] = None,
    runner_key_file: Annotated[
        Path | None, typer.Option(help="Private key of this certificate. Default: in the same file.")
    ] = None,
    sandbox_image: Annotated[str | None, typer.Option(help="Container image (in-process).")] = None,
    warm_containers: Annotated[
        int | None, typer.Option(help="Idle containers to keep ready (in-process).")
    ] = None,
    max_containers: Annotated[
        int | None, typer.Option(help="Maximum number of containers (in-process).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    max_slots: Annotated[
        int | None, typer.Option(help="Sequences in one batch of the embedded engine or the GGUF engine.")
    ] = None,
    max_concurrent_episodes: Annotated[
        int | None, typer.Option(help="Maximum number of concurrent episodes; further ones are queued.")
    ] = None,
    strict_requests: Annotated[
        bool | None,
        typer.Option("--strict-requests", help="Reject unknown fields and fields without effect."),
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="File with one hashed API key per line (see `ih-grpo keys create`).")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.")] = None,
) -> None:
    """Serve a checkpoint over an OpenAI-compatible API.

    Without options, serves the demo model on http://127.0.0.1:8000 and runs code in local containers.
    Every option is also a setting in the environment, such as IHGRPO_PORT; docs/reference/settings.md lists
    all.

    \b
    Examples:
      ih-grpo serve --model Qwen/Qwen3-4B
      ih-grpo serve --model qwen3-4b-q4_k_m.gguf
      ih-grpo serve --engine-url http://gpu-1:8000 --model Qwen/Qwen3-4B
      ih-grpo serve --host 0.0.0.0 --api-keys-file keys --runner-token-file token
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    if (arguments := given.pop("vllm_arg", None)) is not None:
        given["vllm_args"] = arguments
    from service.server.run import StartupError, serve_forever
    from service.server.settings import Settings, unknown_env_vars

    warn(*unknown_env_vars(os.environ))
    try:
        serve_forever(Settings(**given))
    except ValidationError as error:
        abort(*explain(error))
    except StartupError as error:
        abort(str(error))
