from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from service.engines.base import EngineError, Sampling
from service.engines.gguf_metadata import gguf_sampling, read_metadata, sampling_metadata


def write(path: Path, add: dict[str, tuple[object, gguf.GGUFValueType]]) -> Path:
    writer = gguf.GGUFWriter(path, "qwen3")
    for key, (value, kind) in add.items():
        writer.add_key_value(key, value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def test_reads_every_kind_of_value(tmp_path: Path) -> None:
    kinds = gguf.GGUFValueType
    values: dict[str, tuple[object, gguf.GGUFValueType]] = {
        "text": ("größe", kinds.STRING),
        "yes": (True, kinds.BOOL),
        "small": (-3, kinds.INT8),
        "large": (2**40, kinds.UINT64),
        "half": (0.5, kinds.FLOAT32),
        "numbers": ([1, -2, 3], kinds.ARRAY),
        "texts": (["a", "", "日本"], kinds.ARRAY),
        "lists": ([[1, 2], [3]], kinds.ARRAY),
    }
    found = read_metadata(write(tmp_path / "a.gguf", values))
    assert found == {"general.architecture": "qwen3", **{key: value for key, (value, _) in values.items()}}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", {"x": ("old", gguf.GGUFValueType.STRING)})
    assert read_metadata(path)["x"] == "old"
    path.unlink()
    write(path, {"x": ("newer", gguf.GGUFValueType.STRING)})
    assert read_metadata(path)["x"] == "newer"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x09\0\0\0", b"PK\x03\x04" * 9])
def test_rejects_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError, match="is not a complete GGUF file"):
        read_metadata(path)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_rejects_a_truncated_file(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "a.gguf", {"texts": (["first", "second"], gguf.GGUFValueType.ARRAY)})
    content = path.read_bytes().rstrip(b"\0")
    (tmp_path / "b.gguf").write_bytes(content[:-cut])
    with pytest.raises(EngineError, match="is not a complete GGUF file"):
        read_metadata(tmp_path / "b.gguf")


def test_missing_file_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="can't be read: No such file"):
        read_metadata(tmp_path / "none.gguf")


def test_sampling_parameters_survive_the_format(tmp_path: Path) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.75, top_k=20)
    kinds = {int: gguf.GGUFValueType.INT32, float: gguf.GGUFValueType.FLOAT32}
    values = {key: (value, kinds[type(value)]) for key, value in sampling_metadata(sampling).items()}
    assert gguf_sampling(write(tmp_path / "a.gguf", values)) == sampling
    assert sampling_metadata(Sampling()) == {}
