"""Patch for vLLM's processes: lets vLLM's CPU platform use Ray's device name for GPUs.

Together with a Ray cluster that declares fake GPUs, vLLM's Ray backends then run on CPUs. For tests only.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _Patch(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "vllm.platforms.cpu":
            return None
        sys.meta_path.remove(self)
        spec: Any = find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module: Any) -> None:
            execute(module)
            module.CpuPlatform.ray_device_key = "GPU"

        spec.loader.exec_module = execute_and_patch
        return spec  # type: ignore[no-any-return]


sys.meta_path.insert(0, _Patch())
