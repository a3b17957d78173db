"""Fixtures that several test files share. No test touches a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: two threads wait for each other

import json
from pathlib import Path

import pytest
from filelock import FileLock

from tests.launching import ROOT, accelerate

LONGEST = ("test_distributed.py", "test_shard.py", "test_launch.py", "test_resume.py")
"""Files that take minutes: first, so that no worker is left with one when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; else the order stays."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with teacher/, student/ (random Llamas of 2 layers, 32 wide, one tokenizer) and train.jsonl."""
    import torch
    from transformers import LlamaForCausalLM

    from eval.tasks.arithmetic import problems
    from recipes.quickstart.make_models import Learner, character_tokenizer, config

    folder = tmp_path_factory.mktemp("toy")
    tokenizer = character_tokenizer()
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config(Learner(layers=2, width=32, steps=0, lr=0.0), tokenizer))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = problems("train", 64, seed=0)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What tests/workers/large.py leaves on two ranks, by the student's stage; pytest's workers share its launches."""
    root, folders = tmp_path_factory.getbasetemp(), {}
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / "large.lock"):
        for name, stage in {"zero0": 0, "zero3-offload": ROOT / "launch" / "deepspeed" / "zero3-offload.json"}.items():
            folders[name] = root / name
            if not folders[name].exists():
                folders[name].mkdir()
                accelerate(folders[name], "tests.workers.large", str(folders[name]), ranks=2, stage=stage)
    return folders
