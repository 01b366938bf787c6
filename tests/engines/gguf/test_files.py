from __future__ import annotations

from pathlib import Path

import pytest

from service.engines.base import EngineError
from service.engines.gguf import files
from service.engines.gguf.export import export
from service.engines.gguf.files import MOST_CACHE_TOKENS, GGUFFiles, default_cache_tokens
from service.engines.gguf_metadata import read_metadata

GIB = 2**30


@pytest.fixture(scope="module")
def path(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export(tiny_checkpoint, path)
    return path


def test_limits_and_end_tokens_are_those_of_the_checkpoint(path: Path) -> None:
    found = GGUFFiles(path, sequences=4)
    assert (found.context_length, found.cache_tokens, found.vocab_size) == (512, 4 * 512, 365)
    names = ("<|im_end|>", "<|endoftext|>")
    assert found.eos_token_ids == {found.tokenizer.token_id(name) for name in names}


def test_context_fits_into_limit_and_cache(path: Path) -> None:
    assert GGUFFiles(path, max_context=100).context_length == 100
    assert GGUFFiles(path, max_context=9999).context_length == 512
    assert GGUFFiles(path, cache_tokens=64, sequences=4).context_length == 64


@pytest.mark.parametrize(
    ("context", "sequences", "free_gib", "tokens"),
    [
        (512, 4, 64, 2048),
        (32768, 16, 64, MOST_CACHE_TOKENS),
        (131072, 16, 64, 131072),
        # 2 layers x 2 heads x (16 + 16) values x 2 bytes per token, in a quarter of the memory
        (32768, 16, 1 / 16, GIB // 64 // 256),
    ],
)
def test_default_cache_fits_into_memory(
    path: Path, context: int, sequences: int, free_gib: float, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "available_memory", lambda: int(free_gib * GIB))
    assert default_cache_tokens(path, read_metadata(path), context, sequences) == tokens


def test_rejects_files_that_are_not_language_models(path: Path) -> None:
    metadata = {"general.architecture": "clip"}
    with pytest.raises(EngineError, match=r"is not a language model: .* no clip\.attention\.head_count"):
        default_cache_tokens(path, metadata, 512, 1)
