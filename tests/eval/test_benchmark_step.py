"""The step's benchmark: phases are exclusive, figures are what they say, both sides do the same work, bars judge."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from eval.benchmarks.step import launch, ours
from eval.benchmarks.step.__main__ import main, plan
from eval.benchmarks.step.phases import Phases, install
from eval.benchmarks.step.report import RATIOS, ROWS, grid, rate_cell, ratios_table, seconds_cell, write
from eval.benchmarks.step.results import DROPPED, PHASES, Measured
from eval.benchmarks.step.setting import (
    ALL,
    INSTRUCTION,
    PEERS,
    Setting,
    arms_of,
    in_our_order,
    write_questions,
    write_recipe,
)
from opd.errors import DataError, OpdError, RecipeError, TrainingError
from opd.metrics import Clock

PARTS = {"generate": 4.0, "teacher": 1.0, "forward": 2.0, "backward": 3.0, "head": 1.5, "head_backward": 0.5}
PARTS |= {"optimizer": 1.0, "sync": 0.5}
FACTS = {
    "versions": {"torch": "9.9"},
    "setting": {"prompts": 8, "token_budget": 512, "new_tokens": 96},
    "command": "python -m eval.benchmarks.step",
    "commit": "abc",
    "machine": "a machine",
    "threads": 1,
    "date": "2026-08-01",
}


def line(step: float = 15.0, tokens: int = 100, gib: float = 1.0, **parts: float) -> dict:
    """A step of 15 s, 1.5 of them in no phase; `parts` change the phases' seconds."""
    seconds = {f"time/{part}": value for part, value in (PARTS | parts).items()}
    return {"tokens": tokens, "time/step": step, "memory/step": gib, "memory/teacher": gib / 2, "term0/kept": 1.0} | (
        seconds
    )


def measured(name: str, *steps: dict, gib: float = 2.0) -> Measured:
    """One run that starts with slow steps that don't count."""
    return Measured(name, [[line(1000.0, generate=900.0)] * DROPPED + list(steps)], gib)


def test_the_first_steps_of_every_run_are_dropped_and_the_median_is_over_the_rest():
    both = measured("ours", line(15), line(16)) + measured("ours", line(20), gib=3.0)
    assert both.seconds("step") == [15, 16, 20] and both.median("step") == 16 and both.whole_gib == 3.0


def test_a_phase_is_the_sum_of_its_parts_and_rest_is_what_none_of_them_is():
    one = measured("ours", line())
    assert {phase: one.seconds(phase) for phase in PHASES} == {
        "generate": [4.0],
        "teacher": [1.0],
        "student": [5.0],
        "head + loss": [2.0],
        "optimizer": [1.0],
        "sync": [0.5],
    }
    assert one.seconds("rest") == [1.5] and one.seconds("after generation") == [11.0]
    assert sum(one.seconds(row)[0] for row in (*PHASES, "rest")) == one.seconds("step")[0]


def test_a_rate_is_all_tokens_over_all_seconds_and_a_share_is_the_median_steps():
    steps = line(10, 100, head=0.5), line(10, 100, head=1.5), line(40, 400, head=3.5)
    some = measured("ours", *steps)
    assert some.rate() == 600 / 60 and some.rate("generate") == 600 / 12
    assert some.share("head + loss", of="step") == pytest.approx(0.1)


def test_memory_is_the_most_that_any_step_or_the_look_from_outside_saw():
    some = measured("ours", line(gib=5.0), line(gib=1.0), gib=4.0)
    assert some.step_gib() == 5.0 and some.step_gib("teacher") == 2.5 and some.step_gib("sync") == 0.0
    assert some.whole_gib == 5.0 and measured("ours", line(), gib=7.0).whole_gib == 7.0


def bars(ours: Measured, peer: Measured) -> dict[str, str]:
    return {ratio.text: ratio.judged(ours, peer) for ratio in RATIOS}


def test_a_bar_is_met_up_to_its_limit_and_missed_beyond():
    ours, slow = measured("ours", line(10, 250, generate=4)), measured("trl", line(14, 140, generate=4), gib=4.0)
    assert list(bars(ours, slow).values())[:4] == ["0.60", "2.50", "0.50", "0.34"]
    missed = bars(measured("ours", line(10.1, 249, generate=4), gib=2.9), slow)
    assert [missed[ratio.text] for ratio in RATIOS[:3]] == [
        "**0.61**, not met",
        "**2.47**, not met",
        "**0.72**, not met",
    ]
    assert not any("not met" in missed[ratio.text] for ratio in RATIOS[3:]), "only bars can be missed"


def test_bars_are_judged_against_every_configuration_of_trl():
    ours = measured("ours", line())
    rows = ratios_table(ours, measured("trl", line(30)), measured("trl, 2 rows", line(12))).splitlines()
    assert rows[0] == "|  | bar | goal | against trl | against trl, 2 rows |"
    assert rows[2] == "| seconds after generation, ours / TRL | ≤ 0.6 | – | 0.42 | **1.38**, not met |"


def test_tables_have_a_row_a_phase_and_a_dash_where_there_is_none():
    found = [measured("ours", line(), line(17)), measured("trl", line(sync=0.0))]
    seconds = dict(row.strip("| ").split(" | ", 1) for row in grid(found, ROWS, seconds_cell).splitlines())
    assert list(seconds)[2:] == list(ROWS)
    assert seconds["step"] == "16.00 [15.00–17.00] | 15.00 [15.00–15.00]"
    assert seconds["sync"] == "0.50 [0.50–0.50] | –"
    assert "| generate | 25 | 25 |" in grid(found, ROWS, rate_cell)


def test_what_is_written_can_be_read_again(tmp_path: Path):
    few = measured("ours, random 0.1", line() | {"term0/kept": 0.1})
    peer = measured("trl", line() | {"dtype": "bfloat16"})
    text = write([measured("ours", line()), peer, few], FACTS, tmp_path)
    assert text == (tmp_path / "step.md").read_text()
    assert "| ours, random 0.1 | 0.10 | 2.00 [2.00–2.00] | 13% | 18% |" in text and "| whole | 2.00 | 2.00 |" in text
    assert "trl: 1 steps, 100 tokens each, hidden states in bfloat16" in text
    assert "against ours" not in text and "torch 9.9" in text
    stored = json.loads((tmp_path / "step.json").read_text())["measured"]
    assert [(m["name"], len(m["runs"][0])) for m in stored] == [("ours", 3), ("trl", 3), ("ours, random 0.1", 3)]
    assert write([measured("ours", line())], FACTS, tmp_path), "before any peer has run"


class Seconds:
    """A clock's clock that only `pass_` moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def test_the_heads_backward_ends_where_the_hidden_states_have_their_gradient(monkeypatch: pytest.MonkeyPatch):
    seconds, clock = Seconds(monkeypatch), Clock()

    class Slow(torch.autograd.Function):
        """Doubles; takes so many seconds each way."""

        @staticmethod
        def forward(ctx, x, way):
            seconds.pass_(way)
            ctx.way = way
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            seconds.pass_(10 * ctx.way)
            return 2 * gradient, None

    phases = Phases(clock)
    student = phases.during("forward")(lambda x: Slow.apply(x, 1.0))
    head = phases.head(lambda weights, *, hidden: Slow.apply(hidden, 3.0).sum())
    backward = phases.backward(lambda loss: loss.backward())
    x = torch.ones(2, requires_grad=True)
    for _ in range(2):  # two micro-batches
        with clock("step"):
            backward(head(None, hidden=student(x)))
    with clock("step"), torch.no_grad():
        head(None, hidden=student(x))
    taken = clock.take()
    assert {name: value for name, value in taken.items() if name.startswith("time/")} == {
        "time/forward": 3.0,
        "time/head": 9.0,
        "time/head_backward": 60.0,
        "time/backward": 20.0,
        "time/step": 92.0,
    }
    assert x.grad.tolist() == [8.0, 8.0] and all(taken[f"memory/{part}"] > 0 for part in ("head_backward", "backward"))


def test_a_phase_may_follow_from_the_arguments_and_ends_with_an_error(monkeypatch: pytest.MonkeyPatch):
    seconds, clock = Seconds(monkeypatch), Clock()
    timed = Phases(clock).named(lambda who: who)(lambda who: seconds.pass_(1.0 if who == "teacher" else 2.0))
    timed("teacher"), timed("forward"), timed("teacher")
    with pytest.raises(ZeroDivisionError):
        Phases(clock).during("optimizer")(lambda: seconds.pass_(5.0) or 1 / 0)()
    taken = clock.take()
    assert [taken[f"time/{part}"] for part in ("teacher", "forward", "optimizer")] == [2.0, 2.0, 5.0]
    assert clock._open == []


def test_seams_are_put_around_what_they_name(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("a_module")
    module.Class = type("Class", (), {"double": lambda self, x: 2 * x})
    monkeypatch.setitem(sys.modules, "a_module", module)
    install({"a_module:Class.double": lambda f: lambda self, x: f(self, x) + 1})
    assert module.Class().double(3) == 7
    for gone in ("a_module:Class.treble", "a_module:Classes.double", "no_such_module:f"):
        with pytest.raises(OpdError, match=f"times {gone}, which is not there .*name the new place") as raised:
            install({gone: lambda f: f})
        assert "\n" not in str(raised.value)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`setattr` of `install` changes nothing; the list of the names that it would have changed."""
    names = []
    monkeypatch.setattr("eval.benchmarks.step.phases.setattr", lambda _, name, __: names.append(name), raising=False)
    return names


def test_every_seam_of_ours_is_there(untouched: list[str]):
    seams = ours.seams(Phases(Clock()))
    install(seams)
    assert untouched == ["Clock", "score", "trained_states", "forward", "backward", "update"]


def test_every_seam_of_trl_is_there(untouched: list[str], tmp_path: Path):
    pytest.importorskip("trl")
    from eval.benchmarks.step import peer

    seams = peer.seams(peer.Tape(Clock(), tmp_path / "lines.jsonl"))
    install(seams)
    assert len(untouched) == len(seams)


def test_the_tape_writes_a_line_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from eval.benchmarks.step.peer import Tape

    seconds, tape = Seconds(monkeypatch), Tape(Clock(), tmp_path / "lines.jsonl")
    generate = tape.counted(lambda: seconds.pass_(2.0) or [[5, 6, 7], [8]])
    head = tape.noted(lambda hidden: hidden)
    for times in (1, 2):
        tape.begin()
        for _ in range(times):
            generate()
        head(torch.ones(1, dtype=torch.bfloat16))
        tape.end()
    lines = [json.loads(text) for text in tape.to.read_text().splitlines()]
    assert [(x["step"], x["tokens"], x["dtype"], x["time/step"]) for x in lines] == [
        (1, 4, "bfloat16", 2.0),
        (2, 8, "bfloat16", 4.0),
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ (a random Llama of one layer, room for 512 tokens) and train.jsonl."""
    from transformers import LlamaForCausalLM

    from eval.tasks.arithmetic import problems
    from recipes.quickstart.make_models import Learner, character_tokenizer
    from recipes.quickstart.make_models import config as config_of

    folder, tokenizer = tmp_path_factory.mktemp("tiny"), character_tokenizer()
    config = config_of(Learner(layers=1, width=32, steps=0, lr=0.0), tokenizer)
    config.max_position_embeddings = 512
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = problems("train", 40, seed=0)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:5], *rows]))
    return folder


def setting_of(tiny: Path, to: Path, **changes: int) -> Setting:
    setting = Setting(str(tiny / "model"), to, **{"steps": 3} | changes)
    write_questions(tiny / "train.jsonl", to, setting.prompts * setting.steps)
    return setting


def test_both_sides_ask_the_same_questions_in_the_same_order(tiny: Path, tmp_path: Path):
    from opd.models import load_tokenizer
    from opd.prompts import load_prompts
    from opd.recipe_text import parse_recipe

    setting = setting_of(tiny, tmp_path / "questions.jsonl")
    theirs, tokenizer = in_our_order(setting), load_tokenizer(setting.model)
    recipe = parse_recipe(setting.recipe({"type": "random", "keep": 0.1}))
    known = load_prompts(recipe.prompts, tokenizer)
    ours = [prompt.token_ids for step in range(3) for prompt in known.of_step(step, 8, seed=recipe.seed)]
    as_trl_renders = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question + INSTRUCTION}], add_generation_prompt=True, return_dict=False
        )
        for question in theirs
    ]
    assert ours == as_trl_renders and len({*theirs}) == len(theirs) == 24


def test_questions_that_our_run_would_drop_are_refused(tiny: Path, tmp_path: Path):
    setting = setting_of(tiny, tmp_path / "questions.jsonl")
    with setting.questions.open("a") as file:
        file.write(json.dumps({"question": "1+" * 200}) + "\n")
    with pytest.raises(DataError, match="1 questions are longer than 320 tokens"):
        in_our_order(setting)
    with pytest.raises(DataError, match="has no questions"):
        write_questions(tiny / "none.jsonl", tmp_path / "questions.jsonl", 3)


def test_fields_of_our_recipe_are_checked_before_anything_runs(tmp_path: Path):
    setting = Setting("model", tmp_path / "questions.jsonl", ours=("token_budget=1024", "rollout.kv_cache_mib=96"))
    write_recipe(setting, ALL, tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="token_budget"):
        write_recipe(replace(setting, ours=("token_bugdet=1",)), ALL, tmp_path / "recipe.yaml")


def test_ours_and_the_peers_alternate_and_the_shares_come_last():
    arms = arms_of(["random", "soft_or"], [0.5, 0.1])
    assert arms["ours"] == ALL and arms["ours, soft_or 0.1"] == {"type": "soft_or", "keep": 0.1}
    assert [name for name, _ in plan(2, ["trl"], list(arms))] == ["ours", "trl"] * 2 + list(arms)[1:]
    assert not arms.keys() & PEERS.keys()


def test_a_phase_that_was_never_seen_is_an_error_and_not_a_dash():
    peer = measured("trl", line(sync=0.0))
    assert launch.complete(peer, lacks=("sync",)) is peer
    with pytest.raises(TrainingError, match="trl never came by head_backward, sync"):
        launch.complete(measured("trl", line(sync=0.0, head_backward=0.0)), lacks=())


def test_the_peak_of_a_process_is_that_of_its_largest_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    child = "import time; held = bytearray(300 << 20); del held; time.sleep(0.3)"
    (tmp_path / "grows.py").write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    assert 0.29 < launch.watched(["grows"], 1, tmp_path / "log") < 0.4


def test_our_engine_has_no_process_of_its_own_and_both_sides_as_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    (tmp_path / "says.py").write_text(
        "import os; print(*(os.environ[n] for n in ('VLLM_ENABLE_V1_MULTIPROCESSING', 'OMP_NUM_THREADS')))"
    )
    launch.watched(["says"], 3, tmp_path / "log")
    assert (tmp_path / "log").read_text() == "0 3\n"


def test_a_process_that_fails_says_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    (tmp_path / "fails.py").write_text("print('first', flush=True); raise ValueError('no such thing')")
    with pytest.raises(TrainingError, match=r"fails failed, see .*log: ValueError: no such thing$"):
        launch.watched(["fails"], 1, tmp_path / "log")
    assert launch.reason("opd: no model.\nTraceback\nsubprocess.CalledProcessError: rc 2\n") == "opd: no model."
    assert launch.reason("Killed\n") == "Killed" and launch.reason("") == "no output"


@pytest.mark.parametrize("words", ["--steps 2", "--share-steps 1", "--shares 0", "--peers liger", "--steps many"])
def test_what_does_not_exist_is_refused_in_one_line(words: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as refused:
        main(words.split())
    assert refused.value.code == 2 and words.split()[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("words", ["--selectors none_such", "--data none.jsonl"])
def test_what_no_recipe_can_say_is_refused_before_anything_runs(
    words: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    usual = f"--model {tiny}/model --data {tiny}/train.jsonl --steps 3 --peers= --out {tmp_path}".split()
    with pytest.raises(SystemExit) as refused:
        main([*usual, *words.split()])
    said = capsys.readouterr().err.strip()
    assert refused.value.code == 2 and said.count("\n") == 0 and words.split()[1] in said


@pytest.mark.engine
def test_ours_and_trl_run_and_are_measured(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("trl")
    words = f"--model {tiny}/model --data {tiny}/train.jsonl --steps 3 --selectors= --threads 1 --out {tmp_path}"
    main([*words.split(), "--peers", "trl, 2 rows"])
    assert capsys.readouterr().out.strip() == (tmp_path / "step.md").read_text().strip()
    found = [Measured(m["name"], m["runs"], m["process_gib"]) for m in _stored(tmp_path)]
    assert [m.name for m in found] == ["ours", "trl, 2 rows"] and [m.missing() for m in found] == [[], ["sync"]]
    for m in found:
        assert len(m.runs[0]) == 3 and 8 <= m.tokens[0] <= 8 * 96
        assert all(0 <= rest < step for rest, step in zip(m.seconds("rest"), m.seconds("step"), strict=True))
        assert 0.2 < m.step_gib() <= m.whole_gib < 8
    assert {line["dtype"] for line in found[1].runs[0]} == {"bfloat16"}


def _stored(folder: Path) -> list[dict]:
    return json.loads((folder / "step.json").read_text())["measured"]
