"""The command: each contender in a process of its own, one after another, tables after each."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.benchmarks.asked import facts, shares, words
from eval.benchmarks.step.launch import run_ours, run_peer
from eval.benchmarks.step.report import write
from eval.benchmarks.step.results import DROPPED
from eval.benchmarks.step.setting import PEERS, Setting, arms_of, in_our_order, write_questions, write_recipe
from opd.errors import OpdError


def main(words: list[str] | None = None) -> None:
    """Measure, write, print the tables; what a user can mend is one line."""
    asked, console = arguments().parse_args(words), Console(stderr=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    try:
        print(measure(asked, console))
    except OpdError as error:
        console.print(" ".join(str(error).split()), highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    console.print(f"{asked.out}: step.json, step.md, and a log of each run", highlight=False)


def arguments() -> argparse.ArgumentParser:
    """What can be asked for; lists are separated by commas, peers by semicolons."""
    parser = argparse.ArgumentParser("python -m eval.benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of student and teacher")
    parser.add_argument("--data", type=Path, required=True, help="JSONL with a `question` a line")
    parser.add_argument("--steps", type=_steps, default=12, help=f"of a whole run; the first {DROPPED} are dropped")
    parser.add_argument("--rounds", type=int, default=1, help="runs of ours and of each peer, alternating")
    parser.add_argument("--peers", type=_peers, default="trl; trl, 2 rows", help="; ".join(PEERS))
    parser.add_argument("--selectors", type=words, default=["random", "soft_or"], help="at --shares")
    parser.add_argument("--shares", type=shares, default=[0.5, 0.1])
    parser.add_argument("--share-steps", type=_steps, default=8, help="of the runs at --shares")
    parser.add_argument("--ours", type=shlex.split, default=[], help="fields of our recipe, KEY=VALUE in one string")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-step"))
    return parser


def measure(asked: argparse.Namespace, console: Console) -> str:
    """Everything that was asked for, written anew after each run; the tables."""
    arms, found, text = arms_of(asked.selectors, asked.shares), {}, ""
    with tempfile.TemporaryDirectory() as folder:
        setting = setting_of(asked, Path(folder, "questions.jsonl"))
        for select in arms.values():
            write_recipe(setting, select, Path(folder, "recipe.yaml"))
        short = replace(setting, steps=min(asked.share_steps, asked.steps))
        for name, number in plan(asked.rounds, asked.peers, list(arms)):
            console.print(f"{time.strftime('%H:%M:%S')} {name}, run {number}", highlight=False)
            log = asked.out / f"{'-'.join(name.replace(',', '').split())}-{number}.log"
            if name in PEERS:
                run = run_peer(setting, name, PEERS[name], threads=asked.threads, log=log)
            else:
                shape = setting if name == "ours" else short
                run = run_ours(shape, name, arms[name], threads=asked.threads, log=log)
            found[name] = found[name] + run if name in found else run
            text = write(list(found.values()), facts_of(asked, setting), asked.out)
    return text


def setting_of(asked: argparse.Namespace, questions: Path) -> Setting:
    """The setting, with as many questions written as the longest run asks; DataError where they won't do."""
    model = str(asked.model.expanduser().absolute())
    setting = Setting(model, questions, steps=asked.steps, ours=tuple(asked.ours))
    write_questions(asked.data, questions, setting.prompts * setting.steps)
    in_our_order(setting)
    return setting


def plan(rounds: int, peers: list[str], arms: list[str]) -> list[tuple[str, int]]:
    """(contender, number of its run) in order: ours and the peers alternate, then the shares.

    >>> plan(2, ["trl"], ["ours", "ours, random 0.5"])
    [('ours', 0), ('trl', 0), ('ours', 1), ('trl', 1), ('ours, random 0.5', 0)]
    """
    ours, *shares = arms
    return [(name, number) for number in range(rounds) for name in (ours, *peers)] + [(name, 0) for name in shares]


def facts_of(asked: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """What its figures carry."""
    told = asdict(setting) | {"questions": str(asked.data)}
    peers = {name: asdict(PEERS[name]) for name in asked.peers}
    return facts("eval.benchmarks.step", asked.threads, ["trl"] if peers else [], setting=told, peers=peers)


def _peers(text: str) -> list[str]:
    names = words(text, ";")
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(f"no {'; '.join(sorted(unknown))}; choose of {'; '.join(PEERS)}")
    if names and not find_spec("trl"):
        raise argparse.ArgumentTypeError("trl is not installed; install the extra `benchmark`, or give --peers ''")
    return names


def _steps(text: str) -> int:
    if int(text) <= DROPPED:
        raise argparse.ArgumentTypeError(f"the first {DROPPED} steps are dropped; give {DROPPED + 1} or more")
    return int(text)


if __name__ == "__main__":
    main()
