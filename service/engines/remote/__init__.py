"""The engine that samples on vLLM servers elsewhere, over HTTP."""

from service.engines.remote.engine import RemoteEngine
from service.engines.remote.settings import RemoteSettings

__all__ = ["RemoteEngine", "RemoteSettings"]
