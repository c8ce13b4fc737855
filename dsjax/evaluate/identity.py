"""Identity of a model in a folder: results of one are not continued with another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dsjax import disk, weights
from dsjax.checkpoint import files, store
from dsjax.infer import Model


def of(folder: Path | str, model: Model) -> dict[str, Any]:
    """The config, tokenizer and step of a run, or the names and sizes of a release's files."""
    folder = Path(folder)
    config = disk.read_bytes(folder / "config.json", weights.REMEDY)
    found = {"name": folder.resolve().name,
             "config": hashlib.sha256(config).hexdigest()[:16],
             "tokenizer": model.tokenizer.fingerprint}
    if not weights.is_released(folder):
        return found | {"step": max(files.steps(folder / store.CHECKPOINTS), default=None)}
    sizes = sorted((path.name, path.stat().st_size) for path in folder.glob("*.safetensors"))
    return found | {"files": hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]}
