"""Fixtures that several test files share. No test touches a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: two threads wait for each other

import json
from pathlib import Path

import pytest


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
