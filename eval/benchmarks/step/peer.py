"""TRL's `DistillationTrainer` in a process of its own: `python -m eval.benchmarks.step.peer FILE.json`, see `main`.

Local generation: TRL's weight sync to vLLM raises on a CPU. Writes lines like our metrics.jsonl.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from eval.benchmarks.step.phases import Function, Phases, Seams, install
from eval.benchmarks.step.setting import BETAS, INSTRUCTION, LEARNING_RATE, WEIGHT_DECAY, Peer
from opd.metrics import Clock

TRAINER = "trl.trainer.distillation_trainer"


def main(asked: dict[str, Any]) -> None:
    """asked: model, questions (step after step), prompts, new_tokens, steps, peer (a Peer's fields), to (a file)."""
    from transformers import TrainerCallback

    tape = Tape(Clock(), Path(asked["to"]))
    install(seams(tape))

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            tape.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            tape.end()

    with tempfile.TemporaryDirectory() as folder:
        with tape.clock("start"):
            trainer = trainer_of(asked, Peer(**asked["peer"]), folder, [Steps()])
        trainer.train()


class Tape:
    """A line a step: seconds and memory of each phase, completion tokens, the dtype of the student's hidden states."""

    def __init__(self, clock: Clock, to: Path) -> None:
        self.clock, self.to = clock, to
        self.facts: dict[str, Any] = {}
        self.steps = 0
        self._step = ExitStack()

    def begin(self) -> None:
        """A step begins."""
        self.facts = {"tokens": 0}
        self._step.enter_context(self.clock("step"))

    def end(self) -> None:
        """It ends, and is written."""
        self._step.close()
        self.steps += 1
        with self.to.open("a") as file:
            file.write(json.dumps({"step": self.steps} | self.facts | self.clock.take()) + "\n")

    def counted(self, generate: Function) -> Function:
        """Generation that counts what it made, end tokens included."""

        def counting(*args: Any, **kwargs: Any) -> Any:
            completions = generate(*args, **kwargs)
            self.facts["tokens"] += sum(map(len, completions))
            return completions

        return counting

    def noted(self, head: Function) -> Function:
        """The head, with the dtype that it was handed."""

        def noting(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            self.facts["dtype"] = str(hidden.dtype).removeprefix("torch.")
            return head(hidden, *args, **kwargs)

        return noting


def seams(tape: Tape) -> Seams:
    """Where the phases stand in TRL's code."""
    phases = Phases(tape.clock)

    def whose(trainer: Any, model: Any, *_: Any, **__: Any) -> str:
        return "teacher" if model is trainer.accelerator.unwrap_model(trainer.teacher_model) else "forward"

    return {
        f"{TRAINER}:DistillationTrainer._generate_single_turn": lambda f: phases.during("generate")(tape.counted(f)),
        f"{TRAINER}:DistillationTrainer._get_last_hidden_state": phases.named(whose),
        f"{TRAINER}:_chunked_divergence_loss": lambda f: phases.head(tape.noted(f)),
        "accelerate:Accelerator.backward": phases.backward,
        "accelerate:Accelerator.clip_grad_norm_": phases.during("optimizer"),
        "accelerate.optimizer:AcceleratedOptimizer.step": phases.during("optimizer"),
    }


def trainer_of(asked: dict[str, Any], peer: Peer, folder: str, callbacks: list[Any]) -> Any:
    """The trainer, with what our recipe says: same questions in the same order, sampler, divergence, optimizer."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    rows = peer.rows or asked["prompts"]
    settings = DistillationConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=True,
        model_init_kwargs={"dtype": peer.dtype},
        teacher_model_init_kwargs={"dtype": "bfloat16"},
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=asked["prompts"] // rows,
        gradient_checkpointing=peer.gradient_checkpointing,
        max_completion_length=asked["new_tokens"],
        temperature=1.0,
        beta=1.0,
        max_steps=asked["steps"],
        learning_rate=LEARNING_RATE,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    messages = [[{"role": "user", "content": question + INSTRUCTION}] for question in asked["questions"]]
    return DistillationTrainer(
        model=asked["model"],
        teacher_model=asked["model"],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": messages}),
        callbacks=callbacks,
    )


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
