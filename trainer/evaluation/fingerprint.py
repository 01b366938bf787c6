"""Fingerprints of checkpoints, so that an evaluation is never resumed with other weights.

The fingerprint covers the content of every file that decides what the model writes: weights, adapters,
tokenizer, chat template, configuration and ``deferral.json``. It does not depend on paths or file times.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

_DECIDING: Final = re.compile(
    r".*\.(?:safetensors|bin|pt|jinja|model)|(?:config|generation_config|deferral|tokenizer|tokenizer_config|"
    r"special_tokens_map|added_tokens|vocab|chat_template|adapter_config)\.json|merges\.txt|.*\.index\.json"
)


def checkpoint_fingerprint(directory: Path) -> str:
    """Return 16 hexadecimal digits for the checkpoint in ``directory``. Reads all weights, at about 1 GB/s.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file() and _DECIDING.fullmatch(path.name):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(path.name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]
