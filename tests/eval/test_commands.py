"""`opd eval` and `opd compare` from their words to their files, on toy models."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from eval.results import read_result
from eval.runner import start_engine
from eval.tasks import TASKS
from opd.cli import main


@pytest.fixture
def opd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """words → (exit code, stdout, stderr) of the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["opd", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models for which an engine was started."""
    models: list[str] = []

    def noted(model, *rest, **settings):
        models.append(Path(model).name)
        return start_engine(model, *rest, **settings)

    monkeypatch.setattr("eval.runner.start_engine", noted)
    return models


WHO = ("student", "teacher")
HOST = ("--engine", "transformers", "--precision", "fp32")
ASKED = ("--tasks", "arithmetic,skills", "--problems", "9", "--samples", "2", "--max-new-tokens", "12")


def evaluated(opd, toy: Path, *more: str) -> str:
    words = ["eval", "--model", toy / "student", "--teacher", toy / "teacher", *ASKED, *HOST, *more]
    code, out, err = opd(*words)
    assert code == 0, err
    return out


def test_models_and_teacher_are_scored_compared_and_plotted_once(opd, toy, started):
    out = evaluated(opd, toy)
    assert started == ["student", "teacher"]
    for words in (
        "Scores",
        "Paired comparisons",
        "Fidelity",
        "teacher − student",
        "student → teacher",
        "seconds: prepare",
    ):
        assert words in out
    results = Path("results")
    (written,) = results.glob("report-*")
    assert {p.name for p in results.iterdir()} == {"student", "teacher", written.name}
    files = {"report.md", "report.json", "scores.png", "harness-student.json", "harness-teacher.json"}
    assert {p.name for p in written.iterdir()} == files
    report = json.loads((written / "report.json").read_text())
    assert [(r["model"], r["identity"]["task"]) for r in report["results"]] == [
        (model, task) for model in ("student", "teacher") for task in ("arithmetic", "skills")
    ]
    assert {"command", "commit", "versions", "machine"} <= report["results"][0]["environment"].keys()
    assert [f["task"] for f in report["fidelity"]] == ["arithmetic", "skills"]
    assert set(report["fidelity"][0]["tokens"]) == {"student", "teacher"}
    markdown = (written / "report.md").read_text()
    assert markdown.count("## ") == 3 and "opd eval --model" in markdown
    files = {p: p.stat().st_mtime_ns for p in results.rglob("samples.jsonl")}
    evaluated(opd, toy)
    assert started == ["student", "teacher"], "what is finished is not repeated"
    assert files == {p: p.stat().st_mtime_ns for p in results.rglob("samples.jsonl")} and len(files) == 4


def test_answers_can_be_read_one_by_one(opd, toy):
    evaluated(opd, toy)
    (folder,) = Path("results/student").glob("arithmetic-*")
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [(line["problem"], line["sample"]) for line in lines] == [(p, n) for p in range(9) for n in range(2)]
    problems = TASKS["arithmetic"].load(9)
    assert all({"question": line["question"], "answer": line["answer"]} == problems[line["problem"]] for line in lines)
    assert {"text", "final", "rule", "flexible", "strict", "tokens", "finish"} <= lines[0].keys()


def test_who_sampled_stays_said_and_another_call_has_another_report(opd, toy):
    evaluated(opd, toy)
    (folder,) = Path("results/student").glob("skills-*")
    before = read_result(folder).environment["command"]
    opd("eval", "--model", toy / "student", *ASKED, *HOST)
    assert read_result(folder).environment["command"] == before and "--teacher" in before
    assert len(list(Path("results").glob("report-*"))) == 2


def test_fidelity_follows_the_answers(opd, toy):
    """Answers that are replaced are compared anew, and so are their tokens."""
    evaluated(opd, toy)
    (report,) = Path("results").glob("report-*")
    before = json.loads((report / "report.json").read_text())["fidelity"]
    for student in Path("results/student").glob("*/samples.jsonl"):
        (teacher,) = Path("results/teacher").glob(f"{student.parent.name.partition('-')[0]}-*/samples.jsonl")
        header, theirs = student.read_text().splitlines()[0], teacher.read_text().splitlines()[1:]
        student.write_text("\n".join([header, *theirs]) + "\n")
    evaluated(opd, toy)
    after = json.loads((report / "report.json").read_text())["fidelity"]
    assert [f["bleu"] for f in after] == pytest.approx([100.0, 100.0]) != [f["bleu"] for f in before]
    assert after[0]["tokens"]["student"] == after[0]["tokens"]["teacher"] != before[0]["tokens"]["student"]


def test_scores_of_nothing_right_are_plotted_and_one_problem_is_not_compared(opd, toy):
    for problems in ("10", "1"):
        words = ["--tasks", "skills", "--problems", problems, "--max-new-tokens", "3"]
        code, out, err = opd("eval", "--model", toy / "student", "--teacher", toy / "teacher", *words, *HOST)
        assert code == 0 and "0.0%" in out, err
        assert ("Paired comparisons" in out) is (problems == "10")
        assert "of the answers were cut off at 3 tokens" in out
    ours, theirs = ([p for p in Path(f"results/{who}").iterdir() if len(read_result(p).graded) == 1] for who in WHO)
    assert_refused(opd("compare", *ours, *theirs), "answered one problem", "two or more")


def test_another_protocol_is_another_folder(opd, toy, started):
    evaluated(opd, toy)
    evaluated(opd, toy, "--seed", "1")
    assert started == ["student", "teacher"] * 2
    assert len(list(Path("results").rglob("result.json"))) == 8


def test_the_harness_file_holds_what_its_users_look_for(opd, toy):
    evaluated(opd, toy)
    (path,) = Path("results").glob("report-*/harness-student.json")
    found = json.loads(path.read_text())
    assert set(found["results"]) == set(found["versions"]) == set(found["n-samples"]) == {"arithmetic", "skills"}
    (folder,) = Path("results/student").glob("arithmetic-*")
    score = read_result(folder).score
    assert found["results"]["arithmetic"]["exact_match,flexible-extract"] == score["score"]
    assert found["results"]["arithmetic"]["exact_match_stderr,strict-match"] == score["strict_stderr"]
    assert found["n-samples"]["arithmetic"] == {"original": 9, "effective": 9}


def test_finished_results_are_compared(opd, toy):
    evaluated(opd, toy)
    ours, theirs = (str(next(Path(f"results/{who}").glob("skills-*"))) for who in ("student", "teacher"))
    code, out, _ = opd("compare", theirs, ours)
    assert code == 0 and "student − teacher" in out and "McNemar" in out
    (other,) = Path("results/student").glob("arithmetic-*")
    assert_refused(opd("compare", ours, other), "answered other problems", "task: 'arithmetic' and 'skills'")


def assert_refused(ended: tuple[int, str, str], *words: str) -> None:
    code, out, err = ended
    assert (code, out) == (2, "") and err.startswith("opd: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, f"{word!r} is not in: {err}"


def test_one_result_is_no_comparison_and_a_file_no_folder(opd, toy):
    assert_refused(opd("compare", "results"), "at least two results")
    Path("file").write_text("")
    assert_refused(opd("eval", "--model", toy / "student", *ASKED, *HOST, "--out", "file/out"), "is a file")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model": "a"}'])
def test_what_is_no_result_is_named(opd, content):
    folder = Path("elsewhere")
    if content is not None:
        folder.mkdir()
        (folder / "result.json").write_text(content)
    assert_refused(opd("compare", folder, folder), "elsewhere", "give a folder with a finished result.json")


BAD = {
    "a task unknown": (["--tasks", "gsm8"], ["no task 'gsm8'", "did you mean 'gsm8k'?"]),
    "greedy twice": (["--temperature", "0"], ["2 greedy answers", "--temperature"]),
    "top-p of greedy": (["--samples", "1", "--top-p", "0.5"], ["--top-p", "no effect", "--temperature above 0"]),
    "beyond the context": (["--max-new-tokens", "500"], ["128 tokens at most", "lower --max-new-tokens"]),
    "no worked examples": (["--form", "few_shot"], ["no worked examples", "leave --form few_shot out"]),
    "more than there are": (["--problems", "30000"], ["30,000", "ask for fewer"]),
    "no data": (["--tasks", "math500"], ["task math500", "set OPD_DATA to a folder that holds math500.jsonl"]),
    "no such folder": (["--model", "/no/where"], ["'/no/where'", "give a local folder"]),
    "one name twice": (["--model", "{toy}/student", "--model", "other/student"], ["'student'", "rename"]),
    "cache of another engine": (["--kv-cache-mib", "64"], ["--kv-cache-mib", "no effect", "leave it out"]),
    "a thought that no template knows": (["--thinking", "on"], ["--thinking on has no effect", "enable_thinking"]),
    "no number": (["--samples", "many"], ["--samples", "integer"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_words_are_one_line_before_a_model_loads(opd, toy, case, started, monkeypatch):
    monkeypatch.delenv("OPD_DATA", raising=False)
    shutil.copytree(toy / "student", "other/student")
    changed, words = BAD[case]
    wanted = ["--model", str(toy / "student"), *ASKED, *HOST]
    if changed[0] == "--model":
        del wanted[:2]
    assert_refused(opd("eval", *wanted, *(part.format(toy=toy) for part in changed)), *words)
    assert started == [] and not Path("results").exists()


def test_several_processes_are_refused(opd, toy, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(
        opd("eval", "--model", toy / "student", *ASKED, *HOST), "2 were launched", "without accelerate launch"
    )


def test_a_model_without_template_or_without_safetensors_is_named(opd, toy):
    shutil.copytree(toy / "student", "bare")
    Path("bare/model.safetensors").unlink()
    assert_refused(opd("eval", "--model", "bare", *ASKED, *HOST), "'bare'", "no .safetensors")
    Path("bare/chat_template.jinja").unlink()
    assert_refused(opd("eval", "--model", "bare", *ASKED, *HOST), "'bare'", "no chat template", "--form few_shot")


def test_a_folder_with_answers_of_another_model_is_refused(opd, toy):
    evaluated(opd, toy)
    for file in Path("results/student").glob("*/samples.jsonl"):
        file.write_text(file.read_text().replace('"weights": "', '"weights": "0', 1))
    words = ["eval", "--model", toy / "student", *ASKED, *HOST]
    assert_refused(opd(*words), "holds answers of another model", "give another --out")
