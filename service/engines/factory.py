"""Which engine a server runs, from its settings."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from service.engines.base import Engine
from service.server.settings import Settings

Kind = Literal["transformers", "vllm", "remote"]


def engine_kind(settings: Settings) -> Kind:
    """What ``engine`` names. ``auto``: servers where they are named, vLLM on a GPU, else the embedded one."""
    if settings.engine != "auto":
        return settings.engine
    if settings.engine_url:
        return "remote"
    if settings.vllm_args:
        return "vllm"
    if find_spec("vllm") is None or settings.device == "cpu":
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def make_engine(settings: Settings, model_dir: Path) -> Engine:
    """An engine that is not started. Only what it needs is imported.

    Raises:
        EngineError: the checkpoint can't be served.
        ModuleNotFoundError: a package that it needs is missing.
    """
    # A hub id is the name that clients know a model by; of a directory it is the last part.
    own_name = Path(settings.model).name if Path(settings.model).exists() else settings.model
    model, name = str(model_dir), settings.served_model_name or own_name
    match engine_kind(settings):
        case "transformers":
            from service.engines.transformers.engine import TransformersEngine
            from service.engines.transformers.settings import EngineSettings

            return TransformersEngine(
                EngineSettings(
                    model=model,
                    model_name=name,
                    device=settings.device,
                    dtype=settings.dtype,
                    adapters=settings.lora,
                    max_slots=settings.max_slots,
                    max_context=settings.max_context,
                )
            )
        case "vllm":
            from service.engines.vllm.engine import VLLMEngine
            from service.engines.vllm.settings import VLLMSettings

            return VLLMEngine(
                VLLMSettings(
                    model=model,
                    model_name=name,
                    dtype=settings.dtype,
                    max_context=settings.max_context,
                    adapters=settings.lora,
                    args=settings.vllm_args,
                )
            )
        case "remote":
            from service.engines.remote import RemoteEngine, RemoteSettings

            return RemoteEngine(
                RemoteSettings(
                    urls=settings.engine_url,
                    model=model,
                    model_name=name,
                    max_context=settings.max_context,
                    api_key=settings.engine_api_key,
                    logprobs_mode=settings.engine_logprobs_mode,
                )
            )
