"""Scores of teacher and student on held-out problems, and how far apart both are on fixed text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from opd.batch import Rollout
from opd.distributed import Ranks
from opd.doctor import Checked
from opd.metrics import Clock
from opd.models import processor_files
from opd.parts import Parts, engine_for
from opd.rollout.engine import Sampling
from opd.rollout.files import read_rollouts, write_rollouts
from opd.run import SCORE_FILE, RunFolder, write_atomic
from opd.step import divergences


def evaluate_teacher(checked: Checked, folder: RunFolder, ranks: Ranks, clock: Clock) -> None:
    """The teacher's score, once a run, by an engine of its own that is closed again."""
    settings, teacher = checked.recipe.evaluate, checked.recipe.teacher
    if not settings or not settings.teacher or ranks.from_main("teacher" in folder.scores().get(settings.task, {})):
        return
    with clock("evaluate"):
        engine = engine_for(checked, ranks, teacher, checked.stop.teacher, checked.recipe.rollout.alone)
        score = checked.teacher_evaluation(
            engine, who="teacher", to=folder.answers("teacher") if ranks.is_main else None
        )
        engine.close()
    if ranks.is_main:
        folder.add_score(settings.task, "teacher", score)
    ranks.barrier()


def evaluate_student(parts: Parts, who: str, *, steps: int) -> None:
    """The student's score on the engine that is up, and both KLs on the start student's text; once each a run.

    A student in the middle or at the end of training that scores higher than the one in `best/` takes its place.
    """
    settings, folder, run = parts.checked.recipe.evaluate, parts.folder, parts.run
    if not settings or run.ranks.from_main(who in folder.scores().get(settings.task, {})):
        return
    with run.clock("evaluate"):
        to = folder.answers(who) if run.ranks.is_main else None
        score = parts.checked.evaluation(parts.engine, who=who, to=to) | {"steps": steps}
        if settings.fixed_text:
            score["fixed_text"] = divergences(run, fixed_text(parts))
    if settings.every and steps and run.ranks.from_main(is_best(folder.best_score(), score)):
        with run.clock("export"):
            keep_best(parts, score | {"who": who})
    if run.ranks.is_main:
        folder.add_score(settings.task, who, score)
    teachers = folder.scores().get(settings.task, {}).get("teacher")
    line = {f"evaluate/{settings.task}_teacher": teachers["score"]} if teachers else {}
    run.trainer.accelerator.log(tracked(settings.task, score) | line, step=steps)
    run.ranks.barrier()


def tracked(task: str, score: dict[str, Any]) -> dict[str, float]:
    """What trackers are told of a score, beside the step's metrics.

    >>> tracked("gsm8k", {"score": 0.5, "stderr": 0.1, "n": 25, "fixed_text": {"reverse_kl": 0.2, "tokens": 9}})
    {'evaluate/gsm8k': 0.5, 'evaluate/gsm8k_stderr': 0.1, 'fixed_text/reverse_kl': 0.2}
    """
    said = {f"evaluate/{task}": "score", f"evaluate/{task}_stderr": "stderr"}
    said |= {f"evaluate/{name}": name for name in ("truncated", "tokens")}
    found = {name: score[key] for name, key in said.items() if key in score}
    divergences = score.get("fixed_text", {})
    return found | {
        f"fixed_text/{name}": divergences[name] for name in ("reverse_kl", "forward_kl") if name in divergences
    }


def is_best(kept: dict[str, Any] | None, score: dict[str, Any]) -> bool:
    """Whether the student scores higher than the one that is kept, if there is one; of equals the earlier one stays."""
    return kept is None or kept["score"] < score["score"]


def keep_best(parts: Parts, score: dict[str, Any]) -> None:
    """The student in place of the one in `best/`, with its score; whole or not at all. Collective."""
    folder, aside = parts.folder, parts.folder.path / ".best"
    export(parts, aside)
    if parts.run.ranks.is_main:
        write_atomic(aside / SCORE_FILE, json.dumps(score, indent=2) + "\n")
        shutil.rmtree(folder.best, ignore_errors=True)
        aside.rename(folder.best)
    parts.run.ranks.barrier()


def export(parts: Parts, folder: Path) -> None:
    """The student as a plain model folder; its adapter alone, and in `merged/` that folder if wished; collective."""
    student, tokenizer = parts.run.trainer.student, parts.checked.tokenizer
    ends, writes, lora = parts.checked.stop.ends_rollouts, parts.run.ranks.is_main, parts.checked.recipe.student.lora
    if lora is not None:
        student.export_adapter(folder, tokenizer, writes=writes)
    if lora is None or lora.merge:
        whole, spec = folder / "merged" if lora else folder, parts.checked.recipe.student
        student.export(whole, tokenizer, ends=ends, writes=writes)
        for file in processor_files(student.model, spec.model, spec.revision) if writes else ():
            shutil.copy(file, whole)


def fixed_text(parts: Parts) -> list[Rollout]:
    """Rollouts of the start student on held-out problems, at temperature 1 whatever trains; once a run, and kept."""
    recipe, path, ranks = parts.checked.recipe, parts.folder.fixed_text, parts.run.ranks
    if not ranks.from_main(path.exists()):
        prompts = parts.checked.evaluation.prompts[: recipe.evaluate.fixed_text]
        key = ("fixed_text", recipe.seed)
        sampling = Sampling(1, recipe.rollout.max_new_tokens, 1.0, key)
        rollouts = parts.engine.generate(prompts, sampling)
        if ranks.is_main:
            write_rollouts(path, rollouts)
    return ranks.from_main(read_rollouts(path) if ranks.is_main else None)
