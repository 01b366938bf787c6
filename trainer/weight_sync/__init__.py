"""Transfer of new weights to the engines that sample: files, this process's memory, or vLLM's own protocol.

vLLM imports this package at every start through an entry point, so `register` does no more than register a
name.
"""

from __future__ import annotations


def register() -> None:
    """Register the backend ``gloo``. Called by vLLM through the entry point ``vllm.general_plugins``."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            "gloo", "trainer.weight_sync.worker", "GlooWeightTransferEngine"
        )
