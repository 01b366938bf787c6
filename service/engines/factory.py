"""Engine selection: which engine to run, and its construction from settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from service.engines.base import Engine
from service.engines.checkpoint import is_gguf
from service.engines.settings import EngineSettings, GGUFSettings, RemoteSettings, TransformersSettings

EngineKind = Literal["transformers", "gguf", "vllm", "remote"]


def engine_kind(
    engine: Literal["auto"] | EngineKind,
    *,
    model: str = "",
    urls: Sequence[str] = (),
    vllm_args: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> EngineKind:
    """Resolve ``auto``: llama.cpp for a GGUF file, remote if there are server URLs, vLLM if it is installed
    and a GPU is available, else the embedded engine.

    Args:
        engine: the configured engine; returned as it is unless ``auto``.
        model: the configured model.
        urls: addresses of vLLM servers.
        vllm_args: vLLM's engine arguments; if there are any, ``auto`` is vLLM in this process.
        device: the configured device; ``cpu`` rules vLLM out.
    """
    if engine != "auto":
        return engine
    if is_gguf(model):
        return "gguf"
    if urls:
        return "remote"
    if vllm_args:
        return "vllm"
    if find_spec("vllm") is None or device == "cpu":
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def make_engine(settings: EngineSettings) -> Engine:
    """Return the engine for ``settings``, not started. Imports only the packages of that engine.

    Raises:
        EngineError: the checkpoint can't be served.
        ModuleNotFoundError: a package of this engine is not installed.
    """
    if isinstance(settings, TransformersSettings):
        from service.engines.transformers.engine import TransformersEngine

        return TransformersEngine(settings)
    if isinstance(settings, GGUFSettings):
        from service.engines.gguf.engine import GGUFEngine

        return GGUFEngine(settings)
    if isinstance(settings, RemoteSettings):
        from service.engines.remote.engine import RemoteEngine

        return RemoteEngine(settings)
    from service.engines.vllm.engine import VLLMEngine

    return VLLMEngine(settings)
