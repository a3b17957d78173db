"""Everything that the comparison reports, from what its runs left."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from eval.statistics import holm, mean_and_stderr, paired
from opd.run import read_lines

MEASURES = {"score": "exact match", "reverse_kl": "reverse KL, fixed text"}


def outcome(folder: Path) -> dict[str, Any]:
    """What the comparison takes from one run: tokens trained on, and both measures before and after."""
    summary = json.loads((folder / "summary.json").read_text())
    (scores,) = summary["scores"].values()
    start, end = scores["student_start"], scores["student_end"]
    lines = read_lines(folder / "metrics.jsonl")
    return {
        "tokens": sum(line["term0/tokens"] for line in lines),
        "kept": float(np.mean([kept for line in lines if (kept := line["term0/kept"]) is not None])),
        "score": end["score"],
        "reverse_kl": end["fixed_text"]["reverse_kl"],
        "start": {"score": start["score"], "stderr": start["stderr"], "reverse_kl": start["fixed_text"]["reverse_kl"]},
        "seconds": summary["wall_seconds"],
        "commit": summary["commit"],
        "machine": summary["machine"],
    }


def results_of(outcomes: dict[str, dict[int, dict]], teacher: dict[str, Any]) -> dict[str, Any]:
    """Everything that is reported. outcomes: arm → seed → `outcome`; one Holm family for all tests of both measures."""
    arms = {}
    for name, by_seed in outcomes.items():
        values = {key: [o[key] for o in by_seed.values()] for key in ("tokens", "kept", "seconds", *MEASURES)}
        arms[name] = {"seeds": list(by_seed)} | {key: mean_and_stderr(value) for key, value in values.items()}
        share = name.partition("-")[2]
        others = {"full": "full", "random": f"random-{share}"}
        arms[name]["against"] = {
            label: {measure: _against(by_seed, outcomes[other], measure) for measure in MEASURES}
            for label, other in others.items()
            if other in outcomes and other != name
        }
    tests = [t for arm in arms.values() for by in arm["against"].values() for t in by.values() if "p" in t]
    for test, adjusted in zip(tests, holm([t["p"] for t in tests]), strict=True):
        test["p_holm"] = adjusted
    starts = {seed: o["start"] for by_seed in outcomes.values() for seed, o in by_seed.items()}
    start = next(iter(starts.values()))
    return {
        "teacher": {key: teacher[key] for key in ("score", "stderr", "n")},
        "start": {
            "score": {"score": start["score"], "stderr": start["stderr"], "n": teacher["n"]},
            "reverse_kl": mean_and_stderr([s["reverse_kl"] for s in starts.values()]),
        },
        "arms": arms,
        "tests": len(tests),
        "runs": {name: {str(seed): o for seed, o in by_seed.items()} for name, by_seed in outcomes.items()},
    }


def _against(ours: dict[int, dict], theirs: dict[int, dict], measure: str) -> dict[str, Any]:
    """The comparison over the seeds that both arms have; a difference alone where that is one."""
    seeds = sorted(ours.keys() & theirs.keys())
    values = [[by_seed[seed][measure] for seed in seeds] for by_seed in (ours, theirs)]
    if len(seeds) < 2:
        return {"difference": float(np.subtract(*values).mean())} if seeds else {}
    return vars(paired(*values))
