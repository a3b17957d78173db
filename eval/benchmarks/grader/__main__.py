"""The command: `python -m eval.benchmarks.grader`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from eval.benchmarks.grader.hostile import gradings, measured
from eval.benchmarks.grader.real import real_answers


def main(words: list[str] | None = None) -> None:
    """Print what became of the hostile gradings, and of real answers where there are any."""
    parser = argparse.ArgumentParser("python -m eval.benchmarks.grader", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files with known answers")
    parser.add_argument("--show", type=int, default=20, help="wrong verdicts to print of each kind")
    parser.add_argument("--gradings", type=int, default=10_000, help="hostile ones included; 0 for none")
    parser.add_argument("--hostile", type=int, default=100, help="how many of them are hostile")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    console = Console(highlight=False, markup=False)
    if asked.gradings:
        console.print(measured(gradings(asked.gradings, asked.hostile, asked.seed)).report(asked.show), soft_wrap=True)
    if asked.data:
        real_answers(asked.data, console, show=asked.show)


if __name__ == "__main__":
    main()
