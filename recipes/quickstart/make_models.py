"""Make the quickstart's pair, a teacher that adds well and a pupil that forgets carries, and problems to distil on.

    python recipes/quickstart/make_models.py [--to DIR] [--seed S]

    DIR/teacher/  DIR/student/   Hugging Face folders (safetensors, fp32), one token a character
    DIR/train.jsonl  test.jsonl  columns question and answer; no held-out sum is trained on, by either model or later
    DIR/scores.json              exact match of both on the held-out problems, greedy

Both learn worked additions (eval/tasks/arithmetic.py) from scratch in about a minute and a half on two idle CPU cores.
What the pupil is taught forgets most carries: it knows the form of an answer and makes one systematic mistake, which a
teacher can correct token by token. A finished folder is reused; an unfinished one never gets the folder's name.
recipes/comparison/make_models.py makes its pair by the same code, of another `Subject`.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eval.tasks.arithmetic import (
    EOS,
    LONGEST_ANSWER,
    PAD,
    UNKNOWN,
    VOCABULARY,
    draws,
    problems,
    question,
    worked,
)
from eval.tasks.base import Problem
from opd.rewards import grade

ROOT = Path(__file__).resolve().parents[2]
HEAD_DIM = 32
CONTEXT = 128
SCORES = "scores.json"
CONCATENATED = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Subject:
    """What a pair learns, one token a character.

    problems: (split, n, seed) → n different problems of a split · lessons: (forget, seed) → endless training questions
    with their worked answers · longest_answer: tokens, the end included
    """

    vocabulary: tuple[str, ...]
    longest_answer: int
    problems: Callable[[str, int, int], list[Problem]]
    lessons: Callable[[float, int], Iterator[tuple[str, str]]]


@dataclass(frozen=True)
class Learner:
    """One model and how it is taught.

    steps, batch: optimizer steps, and worked answers in each · forget: the probability that a due step is left out.
    """

    layers: int
    width: int
    steps: int
    lr: float
    forget: float = 0.0
    batch: int = 64


def additions(forget: float, seed: int) -> Iterator[tuple[str, str]]:
    """Endless training sums with their worked answers, carries forgotten as `forget` says."""
    rng = random.Random(seed)
    for a, b in draws("train", seed):
        yield question(a, b), worked(a, b, forget=forget, rng=rng)


ADDITION = Subject(VOCABULARY, LONGEST_ANSWER, problems, additions)
TEACHER = Learner(layers=4, width=128, steps=500, lr=3e-3)
STUDENT = Learner(layers=2, width=96, steps=500, lr=5e-3, forget=0.75)


def make(
    folder: Path,
    seed: int,
    *,
    teacher: Learner = TEACHER,
    student: Learner = STUDENT,
    subject: Subject = ADDITION,
    train: int = 4000,
    test: int = 400,
) -> Path:
    """The folder with both models, `train` and `test` problems; made only where it is not there yet.

    Raises FileExistsError where the folder holds something else.
    """
    if (folder / SCORES).is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty and holds no finished pair. Remove it, or choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-unfinished-") as aside:
        made = Path(aside) / folder.name
        made.mkdir()
        held_out = subject.problems("test", test, seed)
        write_rows(made / "train.jsonl", subject.problems("train", train, seed))
        write_rows(made / "test.jsonl", held_out)
        tokenizer = character_tokenizer(subject.vocabulary)
        scores = {}
        for name, learner in (("teacher", teacher), ("student", student)):
            batches = lessons(learner, subject, tokenizer, seed)
            model = taught(learner, batches, tokenizer, seed=seed, name=name)
            scores[name] = exact_match(model, tokenizer, held_out, longest=subject.longest_answer)
            model.save_pretrained(made / name)
            tokenizer.save_pretrained(made / name)
        (made / SCORES).write_text(json.dumps(scores) + "\n")
        if not (folder / SCORES).is_file():  # a run beside this one was faster; the same seed makes the same pair
            made.rename(folder)
    return folder


def taught(
    learner: Learner,
    batches: Iterator[dict[str, Tensor]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    name: str,
) -> LlamaForCausalLM:
    """A new model after `learner.steps` supervised steps; the same seed gives the same model."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(learner, tokenizer))
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    schedule = OneCycleLR(optimizer, learner.lr, learner.steps, pct_start=0.15, cycle_momentum=False)
    batches = islice(batches, learner.steps)
    for batch in track(batches, f"{name}: learning", total=learner.steps, console=Console(stderr=True)):
        model(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def config(learner: Learner, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A small Llama; its weights start at 0.5/√width (0.04 to 0.05 here), as 0.02 is meant for much wider layers."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=learner.width,
        intermediate_size=4 * learner.width,
        num_hidden_layers=learner.layers,
        num_attention_heads=learner.width // HEAD_DIM,
        num_key_value_heads=learner.width // HEAD_DIM,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5 / learner.width**0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def lessons(
    learner: Learner, subject: Subject, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Endless training batches; labels are the worked answer and its end, never the question or the padding."""
    pairs = subject.lessons(learner.forget, seed)
    while True:
        chosen = list(islice(pairs, learner.batch))
        ids = tokenizer(
            [question + answer + EOS for question, answer in chosen],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).input_ids
        asked = torch.tensor([[len(question)] for question, _ in chosen])
        ignored = (torch.arange(ids.shape[1]) < asked) | (ids == tokenizer.pad_token_id)
        yield {"input_ids": ids, "labels": ids.masked_fill(ignored, -100)}


@torch.no_grad()
def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Problem], *, longest: int
) -> float:
    """Share of problems whose final number is right, decoded greedily."""
    prompts = tokenizer([row["question"] for row in rows], padding=True, return_tensors="pt")
    generated = model.generate(**prompts, max_new_tokens=longest, do_sample=False)
    texts = tokenizer.batch_decode(generated[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)
    return sum(grade(text, row["answer"]) for text, row in zip(texts, rows, strict=True)) / len(rows)


def character_tokenizer(vocabulary: tuple[str, ...] = VOCABULARY) -> PreTrainedTokenizerFast:
    """One token a character; the chat template concatenates the contents of the messages."""
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(vocabulary)}, [], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=CONTEXT,
        chat_template=CONCATENATED,
    )


def write_rows(path: Path, rows: list[Problem]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(doc: str = __doc__, *, cache: str = "quickstart", **pair: Any) -> None:
    """Make the pair, or find it made; say where it is and what it scores. `pair`: further arguments of `make`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--to", type=Path, metavar="DIR", help=f"default: .cache/{cache}/seed-S")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    arguments = parser.parse_args()
    folder = make(arguments.to or ROOT / f".cache/{cache}/seed-{arguments.seed}", arguments.seed, **pair)
    scores = json.loads((folder / SCORES).read_text())
    print(folder)
    print("exact match, greedy: " + ", ".join(f"{name} {score:.1%}" for name, score in scores.items()))


if __name__ == "__main__":
    main()
