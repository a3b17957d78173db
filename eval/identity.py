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
    """A folder's or hub id's name: `runs/mine/model` is mine, `Qwen/Qwen3-4B` is Qwen3-4B.

    >>> short_name("runs/mine/model/"), short_name("Qwen/Qwen3-4B")
    ('mine', 'Qwen3-4B')
    """
    parts = [part for part in model.split("/") if part not in ("", ".", "..")]
    return parts[-2] if len(parts) > 1 and parts[-1] in ("model", "best") else parts[-1]


def key_of(identity: dict[str, Any]) -> str:
    """Eight hex digits that depend on all of it."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
