"""Which model answered: a hash of its weights, and where the weights lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from opd.errors import ModelError


def weights_digest(folder: Path) -> str:
    """SHA-256 (16 hex digits) of a model folder's safetensors and config.json, names and contents.

    Raises ModelError where the folder holds no safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{str(folder)!r} holds no .safetensors weights; save the model in that form")
    whole = hashlib.sha256()
    for path in [*files, folder / "config.json"]:
        with path.open("rb") as file:
            whole.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def short_name(model: str) -> str:
    """A folder's or hub id's name: `runs/mine/model` is mine, `runs/mine/best` mine-best, `Qwen/Qwen3-4B` Qwen3-4B.

    >>> short_name("runs/mine/model/"), short_name("runs/mine/best"), short_name("Qwen/Qwen3-4B")
    ('mine', 'mine-best', 'Qwen3-4B')
    """
    path = Path(model).resolve()
    path = path.parent if path.name == "merged" else path
    if path.name == "best":
        return f"{path.parent.name}-best"
    return path.parent.name if path.name == "model" else path.name


def key_of(identity: Any) -> str:
    """Eight hex digits that depend on all of it."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
