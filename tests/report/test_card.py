"""The model card and the final table say what was scored, how sure that is, and what was gained."""

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from opd.report.card import write_card, write_cards
from opd.report.table import gain, score_table
from opd.run import SCORE_FILE, RunFolder

START = {"score": 0.372, "stderr": 0.024, "n": 400, "truncated": 0.01, "tokens": 21.0}
GAIN = {"difference": 0.545, "low": 0.49, "high": 0.6}
END = {"score": 0.918, "stderr": 0.014, "n": 400, "truncated": 0.0, "tokens": 20.5, "gain": GAIN}
SCORES = {"arithmetic": {"teacher": START | {"score": 1.0}, "student_start": START, "student_end": END}}
LORA = {"rank": 16, "alpha": 32, "targets": ["all-linear"]}
SUMMARY = {
    "recipe": {
        "student": {"model": "some/student"},
        "teacher": {"model": "some/teacher"},
        "prompts": {"dataset": "some/data"},
    },
    "steps": 240,
    "scores": SCORES,
    "seed": 0,
    "commit": "abc",
    "machine": "CPU",
    "command": "opd train r.yaml",
    "ranks": 8,
    "zero_stage": 3,
    "resumed": [{"from_step": 100, "command": "opd train runs/r/recipe.yaml --resume", "commit": "def"}],
}


def test_the_card_carries_scores_gain_command_and_recipe(tmp_path: Path):
    write_card(tmp_path, SUMMARY)
    text = (tmp_path / "README.md").read_text()
    assert "| arithmetic | student, end | 91.8% ± 1.4% | 400 | +54.5 [+49.0, +60.0] | 0.0% | 20 |" in text
    assert "base_model: some/student" in text and "\nopd train r.yaml\n" in text and "240 steps" in text
    assert "commit abc, CPU; 8 ranks of `accelerate launch`, ZeRO stage 3, resumed after step 100 (commit def)." in text
    heads, line = text[text.index("| task") :].splitlines()[:2]
    assert heads.count("|") == line.count("|") == 8


def head(folder: Path) -> dict:
    """The card's metadata, as the hub reads it."""
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def with_student(**student) -> dict:
    return SUMMARY | {"recipe": SUMMARY["recipe"] | {"student": {"model": "some/student"} | student}}


@pytest.mark.parametrize(
    ("lora", "merged", "library", "relation", "words"),
    [
        (None, False, "transformers", "finetune", ""),
        (LORA, False, "peft", "adapter", "This is its low-rank adapter (rank 16, alpha 32, on all-linear)"),
        (LORA, True, "transformers", "finetune", "This is the merged model"),
    ],
    ids=["full", "adapter", "merged"],
)
def test_a_card_says_what_its_folder_holds(lora, merged: bool, library: str, relation: str, words: str, tmp_path: Path):
    write_card(tmp_path, with_student(lora=lora), merged=merged)
    known = head(tmp_path)
    assert (known["library_name"], known["base_model_relation"]) == (library, relation)
    assert known["base_model"] == "some/student" and known["datasets"] == ["some/data"]
    assert known["pipeline_tag"] == "text-generation" and {"opd", "on-policy-distillation"} <= set(known["tags"])
    assert ("lora" in known["tags"]) is bool(lora) and words in (tmp_path / "README.md").read_text()


def test_a_card_does_not_send_the_hub_to_a_folder_on_this_machine(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "student").mkdir(parents=True)
    for local in ("./runs/student", str(tmp_path / "student"), "models/student"):
        write_card(tmp_path, with_student(model=local))
        assert not {"base_model", "base_model_relation"} & head(tmp_path).keys()


def test_every_folder_that_a_run_leaves_has_its_card(tmp_path: Path):
    folder = RunFolder(tmp_path)
    for path in (folder.model / "merged", folder.best / "merged"):
        path.mkdir(parents=True)
    (folder.best / SCORE_FILE).write_text(json.dumps({"score": 0.951, "stderr": 0.01, "steps": 120}))
    write_cards(folder, with_student(lora=LORA))
    kinds = {str(path.parent.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("README.md")}
    assert kinds.keys() == {"model", "model/merged", "best", "best/merged"}
    for place, text in kinds.items():
        assert ("merged model" in text) is place.endswith("merged")
        assert ("after step 120, the best" in text and "for 120 steps" in text) is place.startswith("best")


def test_a_run_that_scored_nothing_has_a_card_without_a_table(tmp_path: Path):
    write_card(tmp_path, SUMMARY | {"scores": {}})
    assert "| task" not in (tmp_path / "README.md").read_text()


def test_the_final_table_shows_the_gain_of_the_student_alone():
    console = Console(width=200, record=True)
    console.print(score_table("arithmetic", SCORES["arithmetic"]))
    lines = console.export_text().splitlines()
    assert [("+54.5 [+49.0, +60.0]" in line) for line in lines if "student" in line] == [False, True]
    assert gain(START) == ""
