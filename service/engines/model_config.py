"""Configuration of a checkpoint that every engine reads before any weight: tokenizer, limits, end tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from service.engines.token_stream import DetokenizerFactory
from service.engines.tokenizer import HFTokenizer

if TYPE_CHECKING:
    import torch


class EngineFiles(Protocol):
    """The part of a model that an engine reads before its weights.

    Attributes:
        tokenizer, detokenizer: encoder, and factory of streaming decoders.
        context_length: maximum length of prompt and completion in tokens.
        eos_token_ids: tokens that end a reply.
        vocab_size: rows of the embedding.
    """

    tokenizer: HFTokenizer
    detokenizer: DetokenizerFactory
    context_length: int
    eos_token_ids: frozenset[int]
    vocab_size: int


class ModelFiles(EngineFiles):
    """The configuration files of a checkpoint, given as a directory or a hub id.

    ``config`` is the model's configuration, ``context_length`` at most ``max_context``, and ``eos_token_ids``
    has the tokenizer's end token and those of the generation config.

    Raises:
        EngineError: there is no fast tokenizer.
    """

    def __init__(self, model: str, max_context: int | None = None) -> None:
        self.tokenizer = HFTokenizer(model)
        self.detokenizer = DetokenizerFactory(self.tokenizer.backend)
        self.config: PretrainedConfig = AutoConfig.from_pretrained(model)
        text_config = self.config.get_text_config()
        limits = [text_config.max_position_embeddings, max_context]
        self.context_length = min(limit for limit in limits if limit is not None)
        self.vocab_size = text_config.vocab_size
        self.eos_token_ids = _eos_token_ids(model, self.tokenizer)


class FileEngine:
    """Base class of the engines: the part of ``service.engines.base.Engine`` that depends only on the model's
    files."""

    def __init__(self, files: EngineFiles, model_name: str) -> None:
        self._files = files
        self._model_name = model_name

    @property
    def model_name(self) -> str:
        return self._model_name

    @property
    def tokenizer(self) -> HFTokenizer:
        return self._files.tokenizer

    @property
    def context_length(self) -> int:
        return self._files.context_length

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._files.eos_token_ids


class CheckpointEngine(FileEngine):
    """Base class of the engines that serve a checkpoint in the Hugging Face format.

    Raises:
        EngineError: there is no fast tokenizer.
    """

    _files: ModelFiles

    def __init__(self, model: str, model_name: str | None, max_context: int | None) -> None:
        super().__init__(ModelFiles(model, max_context), model_name or Path(model).name)


def without_weights(config: PretrainedConfig) -> torch.nn.Module:
    """Create a causal LM of this configuration on the device ``meta``: its modules, without memory for
    weights."""
    import torch  # not needed by engines whose model runs elsewhere
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: torch.nn.Module = auto.from_config(config)
    return model


def head_dim(config: PretrainedConfig) -> int:
    """Return the width of an attention head. ``config`` is that of the text model."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def count_parameters(config: PretrainedConfig) -> int:
    """Count the parameters of a causal LM of this configuration, tied ones once, without loading weights."""
    model = without_weights(config)
    return sum(weight.numel() for weight in model.parameters())


def _eos_token_ids(model: str, tokenizer: HFTokenizer) -> frozenset[int]:
    ids = {tokenizer.eos_token_id}
    try:
        eos = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        eos = None
    ids.update(eos if isinstance(eos, list) else [eos])
    return frozenset(token_id for token_id in ids if token_id is not None)
