"""What every engine reads of a checkpoint before any weight: tokenizer, limits, end tokens."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from service.engines.token_stream import DetokenizerFactory
from service.engines.tokenizer import HFTokenizer


class ModelFiles:
    """The small files of a checkpoint, a directory or a hub id.

    Attributes:
        tokenizer, detokenizer: text to ids, and ids to text as they come.
        config: the model's own.
        context_length: prompt and completion together, in tokens; at most ``max_context``.
        eos_token_ids: the tokenizer's end token and those of the generation config, which may name several.
        vocab_size: rows of the embedding.

    Raises:
        EngineError: there is no fast tokenizer.
    """

    def __init__(self, model: str, max_context: int | None = None) -> None:
        self.tokenizer = HFTokenizer(model)
        self.detokenizer = DetokenizerFactory(self.tokenizer.backend)
        self.config: PretrainedConfig = AutoConfig.from_pretrained(model)
        text_config = self.config.get_text_config()
        limits = [text_config.max_position_embeddings, max_context]
        self.context_length: int = min(limit for limit in limits if limit is not None)
        self.vocab_size: int = text_config.vocab_size
        self.eos_token_ids = _eos_token_ids(model, self.tokenizer)


class CheckpointEngine:
    """What every engine says of its checkpoint: that part of ``service.engines.base.Engine``.

    Raises:
        EngineError: there is no fast tokenizer.
    """

    def __init__(self, model: str, model_name: str | None, max_context: int | None) -> None:
        self._files = ModelFiles(model, max_context)
        self._model_name = model_name or Path(model).name

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


def _eos_token_ids(model: str, tokenizer: HFTokenizer) -> frozenset[int]:
    ids = {tokenizer.eos_token_id}
    try:
        eos = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        eos = None
    ids.update(eos if isinstance(eos, list) else [eos])
    return frozenset(token_id for token_id in ids if token_id is not None)
