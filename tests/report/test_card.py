"""The model card and the final table say what was scored, how sure that is, and what was gained."""

from pathlib import Path

from rich.console import Console

from opd.report.card import write_card
from opd.report.table import gain, score_table

START = {"score": 0.372, "stderr": 0.024, "n": 400, "truncated": 0.01, "tokens": 21.0}
GAIN = {"difference": 0.545, "low": 0.49, "high": 0.6}
END = {"score": 0.918, "stderr": 0.014, "n": 400, "truncated": 0.0, "tokens": 20.5, "gain": GAIN}
SCORES = {"arithmetic": {"teacher": START | {"score": 1.0}, "student_start": START, "student_end": END}}
SUMMARY = {
    "recipe": {"student": {"model": "some/student"}, "teacher": {"model": "some/teacher"}},
    "steps": 240,
    "scores": SCORES,
    "seed": 0,
    "commit": "abc",
    "machine": "CPU",
    "command": "opd train r.yaml",
}


def test_the_card_carries_scores_gain_command_and_recipe(tmp_path: Path):
    write_card(tmp_path, SUMMARY)
    text = (tmp_path / "README.md").read_text()
    assert "| arithmetic | student, end | 91.8% ± 1.4% | 400 | +54.5 [+49.0, +60.0] | 0.0% | 20 |" in text
    assert "base_model: some/student" in text and "opd train r.yaml" in text and "240 steps" in text
    heads, line = text[text.index("| task") :].splitlines()[:2]
    assert heads.count("|") == line.count("|") == 8


def test_an_adapters_card_says_that_it_is_one(tmp_path: Path):
    for lora, line in ((None, False), ({"rank": 16}, True)):
        student = {"model": "some/student", "lora": lora}
        write_card(tmp_path, SUMMARY | {"recipe": SUMMARY["recipe"] | {"student": student}})
        assert ("library_name: peft\n" in (tmp_path / "README.md").read_text()) is line


def test_a_run_that_scored_nothing_has_a_card_without_a_table(tmp_path: Path):
    write_card(tmp_path, SUMMARY | {"scores": {}})
    assert "| task" not in (tmp_path / "README.md").read_text()


def test_the_final_table_shows_the_gain_of_the_student_alone():
    console = Console(width=200, record=True)
    console.print(score_table("arithmetic", SCORES["arithmetic"]))
    lines = console.export_text().splitlines()
    assert [("+54.5 [+49.0, +60.0]" in line) for line in lines if "student" in line] == [False, True]
    assert gain(START) == ""
