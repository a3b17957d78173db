"""What the commands of `head/` and `step/` share: lists that are asked for, and what a figure carries."""

import argparse
import shlex
import sys
import time
from typing import Any

from opd.run import environment


def words(text: str, separator: str = ",") -> list[str]:
    """Each word once, in order.

    >>> words("trl; trl, 2 rows;; trl", ";")
    ['trl', 'trl, 2 rows']
    """
    return list(dict.fromkeys(word.strip() for word in text.split(separator) if word.strip()))


def shares(text: str) -> list[float]:
    """One or more, above 0 and at most 1."""
    found = [float(word) for word in words(text)]
    if not found or not all(0 < share <= 1 for share in found):
        raise argparse.ArgumentTypeError("shares lie above 0 and at most at 1")
    return found


def facts(module: str, threads: int, packages: list[str], **more: Any) -> dict[str, Any]:
    """What a figure must carry. packages: the peers', whose versions are told where they are installed."""
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    return environment(*packages) | {"command": command, "threads": threads, "date": time.strftime("%Y-%m-%d")} | more


def source(facts: dict[str, Any]) -> str:
    """The end of a caption: where its figures come from."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    where = f"commit {facts['commit']}, {facts['machine']}, {facts['threads']} threads, {facts['date']}"
    return f"`{facts['command']}`, {where}; {versions}."
