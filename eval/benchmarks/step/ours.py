"""`opd train` itself, whose clock knows teacher, student, head and optimizer too: they stand in its metrics.jsonl.

accelerate launch --config_file launch/accelerate/cpu-1.yaml -m eval.benchmarks.step.ours train RECIPE
"""

from __future__ import annotations

from eval.benchmarks.step.phases import Phases, Seams, install
from opd.cli import main
from opd.metrics import Clock


def seams(phases: Phases) -> Seams:
    """Where the phases stand in our code; generate and sync are there already."""
    return {
        "opd.train:Clock": lambda _: lambda: phases.clock,
        "opd.teacher.local:LocalTeacher.score": phases.during("teacher"),
        "opd.student:trained_states": phases.during("forward"),
        "opd.student:SelectiveHead.forward": phases.head,
        "opd.distributed:Trainer.backward": phases.backward,
        "opd.distributed:Trainer.update": phases.during("optimizer"),
    }


if __name__ == "__main__":
    install(seams(Phases(Clock())))
    main()
