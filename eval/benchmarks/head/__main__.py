"""The command: measure every case asked for, and write table and plot after each."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eval.benchmarks.asked import facts, shares, words
from eval.benchmarks.head.cases import BETAS, DTYPES, SHAPES, Case, Shape
from eval.benchmarks.head.contenders import CONTENDERS
from eval.benchmarks.head.error import gradient_errors
from eval.benchmarks.head.floor import CHOSEN, FLOORS
from eval.benchmarks.head.memory import peaks
from eval.benchmarks.head.report import write
from eval.benchmarks.head.results import Measured
from eval.benchmarks.head.rounds import Entry, entries, take_part, timed

VOCABULARIES = (32_768, 65_536, 131_072, 262_144)
SWEEP_SHARE = 0.5
Tell = Callable[[str], None]
"""One part of the work begins; its words are shown beside the bar."""


def main(words: list[str] | None = None) -> None:
    """Measure, write, print the table."""
    asked = arguments().parse_args(words)
    torch.set_num_threads(asked.threads)
    console = Console(stderr=True)
    names, cases = present(asked.contenders, console), cases_of(asked)
    swept = [Case(f"1024x576x576x{v}", frozen=f, device=asked.device) for v in asked.vocabularies for f in asked.frozen]
    found, sweep = [], []
    with bar(console) as progress:
        task = progress.add_task("", total=sum(steps(c, names, asked) for c in cases) + len(swept))

        def tell(text: str) -> None:
            progress.update(task, advance=1, description=text)

        for case in cases:
            found.append(measured(case, names, asked, tell))
            write(found, sweep, facts_of(asked), asked.out)
            progress.console.print(f"{case}: done", highlight=False)
        for case in swept:
            tell(f"{case}: memory")
            sweep.append(memory_of(Measured(case, [SWEEP_SHARE]), ["ours"] if "ours" in names else [], lambda _: None))
    print(write(found, sweep, facts_of(asked), asked.out))
    console.print(f"{asked.out}: results.json, table.md, full.md, head.png", highlight=False)


def arguments() -> argparse.ArgumentParser:
    """What can be asked for; lists are separated by commas."""
    parser = argparse.ArgumentParser("python -m eval.benchmarks.head", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", type=_shapes, default=list(SHAPES), help=f"{', '.join(SHAPES)}, or TxHsxHtxV")
    parser.add_argument("--shares", type=shares, default=[1.0, 0.5, 0.25, 0.1])
    for name, choices in (("objectives", BETAS), ("dtypes", DTYPES), ("contenders", FLOORS | CONTENDERS)):
        parser.add_argument(f"--{name}", type=_some(choices), default=list(choices), help=", ".join(choices))
    help_frozen = "whether the head trains (no), is frozen (yes, first objective only), or both (no,yes)"
    parser.add_argument("--frozen", type=_frozen, default=[False, True], help=help_frozen)
    parser.add_argument("--rounds", type=int, default=5, help="0 measures memory and errors alone")
    parser.add_argument("--vocabularies", type=_integers, default=list(VOCABULARIES), help="for memory of ours by V")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-head"))
    return parser


def cases_of(asked: argparse.Namespace) -> list[Case]:
    """Every case, those of a frozen head with the first objective alone: the others differ as they do without."""
    products = itertools.product(asked.shapes, asked.dtypes, asked.frozen, asked.objectives)
    return [
        Case(shape, objective, dtype, frozen, asked.device)
        for shape, dtype, frozen, objective in products
        if not frozen or objective == asked.objectives[0]
    ]


def present(names: list[str], console: Console) -> list[str]:
    """Those that can take part, floors first; a line for each that can't."""
    reasons = {name: CONTENDERS[name].missing() for name in names if name in CONTENDERS}
    for name, reason in reasons.items():
        if reason:
            console.print(f"{name} is left out: {reason}", highlight=False)
    return [name for name in (*FLOORS, *CONTENDERS) if name in names and not reasons.get(name)]


def measured(case: Case, names: list[str], asked: argparse.Namespace, tell: Tell) -> Measured:
    """All about one case: peaks first, while nothing else is in memory."""
    names = take_part(case, names)
    found = memory_of(Measured(case, asked.shares), names, tell)
    tell(f"{case}: errors")
    found.errors = gradient_errors(case, [name for name in names if name in CONTENDERS])
    if asked.rounds:
        for call in timed(case, names, asked.shares, asked.rounds):
            tell(f"{case}: {call.entry.name}")
            found.take(call)
    return found


def memory_of(found: Measured, names: list[str], tell: Tell) -> Measured:
    """Its peaks filled in: a process a contender and part, all shares in it. One that dies has none, and says so."""
    for name, part, asked in processes(names, found.shares):
        tell(f"{found.case}: memory of {name}")
        try:
            got = peaks(found.case, name, part, [share or min(found.shares) for share in asked])
        except RuntimeError as error:
            print(error, file=sys.stderr)
            continue
        found.peaks |= {Entry(name, part, share): peak for share, peak in zip(asked, got, strict=True)}
    return found


def processes(names: list[str], shares: list[float]) -> list[tuple[str, str, list[float | None]]]:
    """(contender, part, shares) of each process that measures memory."""
    grouped: dict[tuple[str, str], list[float | None]] = {}
    for entry in entries(names, shares):
        if entry.name in CONTENDERS:
            grouped.setdefault((entry.name, entry.part), []).append(entry.share)
    return [(name, part, of) for (name, part), of in grouped.items()]


def steps(case: Case, names: list[str], asked: argparse.Namespace) -> int:
    """How often `measured` tells."""
    names = take_part(case, names)
    calls = len(entries(names, asked.shares)) * (asked.rounds + 1) if asked.rounds else 0
    return len(processes(names, asked.shares)) + 1 + calls


def facts_of(asked: argparse.Namespace) -> dict[str, Any]:
    """What its figures carry; the floor's forms are those chosen by now."""
    forms, peers = [[*product, *form] for product, form in CHOSEN.items()], ["trl", "liger-kernel"]
    return facts("eval.benchmarks.head", asked.threads, peers, rounds=asked.rounds, floor_forms=forms)


def bar(console: Console) -> Progress:
    """Progress with the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


def _some(choices: dict[str, Any]) -> Callable[[str], list[str]]:
    def some(text: str) -> list[str]:
        if unknown := set(words(text)) - set(choices):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}; choose of {', '.join(choices)}")
        return [name for name in choices if name in words(text)]

    return some


def _shapes(text: str) -> list[str]:
    try:
        return [word for word in words(text) if Shape.named(word)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _integers(text: str) -> list[int]:
    return [int(word) for word in words(text)]


def _frozen(text: str) -> list[bool]:
    return [word == "yes" for word in _some({"no": 0, "yes": 1})(text)]


if __name__ == "__main__":
    main()
