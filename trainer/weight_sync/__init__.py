"""Weights to vLLM from memory, by its own protocol for weight transfer: on servers, or in this process.

vLLM imports this module at every start, so nothing more than a name is registered.
"""

from __future__ import annotations


def register() -> None:
    """Make the backend ``gloo`` known: called by vLLM, through the entry point ``vllm.general_plugins``."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            "gloo", "trainer.weight_sync.worker", "GlooWeightTransferEngine"
        )
