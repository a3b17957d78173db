"""The head's benchmark: everyone computes the same, the floor is what the architecture counts, bars judge rightly."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eval.benchmarks.head import floor, memory
from eval.benchmarks.head.__main__ import main, processes
from eval.benchmarks.head.bars import beyond_gradient, verdicts
from eval.benchmarks.head.cases import BETAS, Case
from eval.benchmarks.head.contenders import CONTENDERS, Contender, plain_torch
from eval.benchmarks.head.error import gradient_errors, gradients, relative_error
from eval.benchmarks.head.report import bars_table, full
from eval.benchmarks.head.results import Measured
from eval.benchmarks.head.rounds import Call, Entry, entries, take_part, timed

TINY = "24x8x12x300"


def addmm_flop(out: tuple, left: tuple, right: tuple, **_: object) -> int:
    """addmm_ in place, which torch's own table lacks."""
    return 2 * left[0] * left[1] * right[1]


ADDMM = {torch.ops.aten.addmm_: addmm_flop}


def contender(name: str) -> Contender:
    if reason := CONTENDERS[name].missing():
        pytest.skip(f"{name} is not here: {reason}")
    return CONTENDERS[name]


@pytest.mark.parametrize("frozen", [False, True], ids=["trains", "frozen"])
@pytest.mark.parametrize("objective", BETAS)
@pytest.mark.parametrize("name", [name for name in CONTENDERS if "fp32" in CONTENDERS[name].dtypes])
def test_every_contender_has_plain_torchs_gradient(name: str, objective: str, frozen: bool):
    inputs = Case(TINY, objective, frozen=frozen).inputs()
    kept_T = inputs.kept(0.5)
    truth = gradients(plain_torch, inputs, kept_T)
    found = gradients(contender(name).loss, inputs, kept_T)
    assert found.keys() == truth.keys() == ({"hidden"} if frozen else {"hidden", "head"})
    for part, gradient in found.items():
        assert relative_error(gradient, truth[part]) < 1e-4
    assert not found["hidden"][~kept_T].any() and found["hidden"][kept_T].any(-1).all()


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_bf16_gradient_is_near_the_truth_and_not_equal_to_it(name: str):
    contender(name)
    errors = gradient_errors(Case(TINY, dtype="bf16"), [name])[name]
    assert all(1e-5 < error < 0.05 for error in errors.values()) and len(errors) == 2


def test_trls_statistics_are_the_reverse_kl_of_every_row():
    inputs = Case(TINY).inputs()
    theirs = contender("trl-compact").statistics(inputs)
    torch.testing.assert_close(theirs, CONTENDERS["ours"].statistics(inputs)["reverse_kl"], rtol=1e-4, atol=1e-5)


def test_a_contender_without_its_package_says_why():
    assert "no_such_peer" in Contender(plain_torch, needs="no_such_peer").missing()
    assert Contender(plain_torch).missing() is None


@pytest.mark.parametrize("form", floor.FORMS)
@pytest.mark.parametrize("frozen", [False, True], ids=["trains", "frozen"])
def test_the_floor_runs_the_products_that_the_architecture_counts(form, frozen: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(floor.Product, "form", (min(form[0], 5), min(form[1], 7)))
    inputs = Case(TINY).inputs()
    fs, ft = 2 * 24 * 8 * 300, 2 * 24 * 12 * 300
    the_floor = floor.Floor.of(inputs, None, frozen=frozen)
    with FlopCounterMode(display=False, custom_mapping=ADDMM) as loss:
        parts = the_floor.loss(inputs.kept(0.25))
    with FlopCounterMode(display=False, custom_mapping=ADDMM) as statistics:
        the_floor.statistics()
    assert loss.get_total_flops() == (3 - frozen) * fs / 4 + ft / 4
    assert statistics.get_total_flops() == fs + ft
    assert set(parts) == {"student", "teacher", "hidden"} | ({"head"} if not frozen else set())


@pytest.mark.parametrize("tile", [(24, 300), (5, 7)])
def test_a_tiled_product_is_the_product(tile: tuple[int, int]):
    inputs = Case(TINY).inputs().to(torch.float64)
    hidden_nH, weight_VH = inputs.hidden_TH, inputs.weight_VH
    ones, rows, columns = hidden_nH.new_ones(tile[0] * tile[1]), *tile
    out_nH, out_VH = torch.full_like(hidden_nH, torch.nan), torch.full_like(weight_VH, torch.nan)
    floor.Product("hidden", hidden_nH, weight_VH)._hidden_gradient(ones, out_nH, rows, columns)
    floor.Product("head", hidden_nH, weight_VH)._head_gradient(ones, out_VH, rows, columns)
    torch.testing.assert_close(out_nH, weight_VH.sum(0).expand_as(out_nH))
    torch.testing.assert_close(out_VH, hidden_nH.sum(0).expand_as(out_VH))


def test_a_round_times_each_share_once_and_who_computes_every_row_once():
    names = take_part(Case(TINY), ["floor", "floor-fp32", "ours", "ours-fast", "trl-compact", "torch"])
    assert names == ["floor", "ours", "trl-compact", "torch"], "bf16's contenders have no part in fp32"
    plan = entries(names, [1.0, 0.5])
    assert [e.name for e in plan if e.part == "statistics"] == ["floor", "ours", "trl-compact"]
    assert [e.share for e in plan if e.name == "torch"] == [None]
    assert [e.share for e in plan if (e.name, e.part) == ("ours", "loss")] == [1.0, 0.5]
    assert processes(names, [1.0, 0.5])[-3:] == [
        ("ours", "loss", [1.0, 0.5]),
        ("ours", "after", [1.0, 0.5]),
        ("trl-compact", "loss", [1.0, 0.5]),
    ]


def test_rounds_are_interleaved_and_the_first_is_not_counted():
    calls = list(timed(Case(TINY), ["floor", "torch"], [1.0, 0.5], rounds=2))
    plan = entries(["floor", "torch"], [1.0, 0.5])
    assert [call.entry for call in calls] == plan + plan + plan[::-1]
    assert [call.counts for call in calls] == [False] * len(plan) + [True] * 2 * len(plan)
    assert all(sum(call.parts.values()) > 0 for call in calls if call.counts)


def test_first_calls_are_told_of_those_that_compile():
    found = Measured(Case(TINY), [0.5])
    for name, counts in (("ours-fused", False), ("ours-fused", False), ("ours-fused", True), ("ours", False)):
        found.take(Call(Entry(name, "loss", 0.5), {"all": 3.0}, counts=counts))
    assert found.first == {"ours-fused": 6.0} and found.record()["first_call_seconds"] == found.first
    assert [*found.times.values()] == [[{"all": 3.0}]]
    assert "| 6.0 |" in full([found])


@pytest.mark.parametrize(
    "way", [memory.growth, lambda call, _: memory._growth_by_polling(call)], ids=["any", "polling"]
)
def test_growth_is_the_peak_and_not_what_is_left(way):
    def call() -> None:
        large = torch.ones(16 << 20)
        time.sleep(0.05)
        del large
        torch.ones(4 << 20)

    assert 60 < way(call, "cpu") / 2**20 < 80


def measured(ours: float, statistics: float, case: Case | None = None) -> Measured:
    """Two rounds at share 0.25: a floor of 1 s (logits 0.5) and 2 s of statistics, TRL masked 10 s; ours as given."""
    floor_parts = {"student": 0.2, "teacher": 0.3, "hidden": 0.25, "head": 0.25}
    times = {
        Entry("floor", "loss", 0.25): [floor_parts] * 2,
        Entry("floor", "statistics", None): [{"student": 1.0, "teacher": 1.0}] * 2,
        Entry("ours", "loss", 0.25): [{"all": ours}] * 2,
        Entry("ours", "statistics", None): [{"all": statistics}] * 2,
        Entry("trl-masked", "loss", None): [{"all": 10.0}] * 2,
    }
    peaks = {Entry("ours", "loss", 0.25): 20, Entry("ours", "statistics", None): 30}
    peaks[Entry("trl-masked", "loss", None)] = 90
    return Measured(case or Case(TINY), [0.25], times, peaks)


def judged(*found: Measured) -> dict[str, tuple[float, bool]]:
    return {v.bar.text: (round(v.value, 3), v.within <= 1) for v in verdicts(list(found))}


def test_bars_judge_ratios_to_floor_and_peers_with_statistics_and_without():
    found = judged(measured(1.1, 2.9), measured(1.2, 2.0, Case(TINY, "jsd")))
    assert found["time, fp32, weights known: ours / floor, KLs"] == (1.1, True)
    assert found["time, fp32, weights from statistics: ours / floor, KLs"] == (1.333, False)
    assert found["time, fp32, weights known: ours / floor + ρ(Fs + Ft), JSD"] == (0.8, True)
    assert found["time, fp32, weights from statistics: ours / trl-masked"] == (0.4, False)
    assert found["peak memory, head trains, weights known: ours / trl-masked"] == (0.222, True)
    assert found["peak memory, head trains, weights from statistics: ours / trl-masked"] == (0.333, False)


def test_the_worst_case_is_the_one_farthest_over_its_limit():
    table = bars_table(verdicts([measured(1.0, 2.0), measured(1.2, 2.0, Case(TINY, "forward_kl"))]))
    line = next(line for line in table.splitlines() if "weights known: ours / floor, KLs" in line)
    assert "1.20" in line and "forward_kl" in line and "**no**" in line


def test_what_was_not_measured_is_a_dash_and_no_bar():
    alone = Measured(Case(TINY), [0.25], {Entry("ours", "loss", 0.25): [{"all": 1.0}]})
    assert verdicts([alone]) == [] and "trl" not in full([alone])
    both = Measured(Case(TINY, "jsd"), [0.25], {Entry("torch", "loss", None): [{"all": 2.0}]})
    assert "| 0.25 | – | 2.00 [2.00–2.00] |" in full([alone, both])
    assert beyond_gradient(alone, "ours", 0.25) is None
    assert beyond_gradient(measured(1, 1), "trl-masked", 0.25) == 90 - 300 * 8 * 4


def test_the_command_writes_table_plot_and_results(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = f"--shapes {TINY} --shares 1,0.25 --objectives reverse_kl,jsd --dtypes fp32 --rounds 2 --threads 1"
    words += f" --contenders floor,ours,torch --frozen no --vocabularies 64 --out {tmp_path}"
    main(words.split())
    text = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert f"| {TINY} | fp32 | trains | reverse_kl | 0.25 |" in text and "1024x576x576x64" in text
    assert (tmp_path / "head.png").read_bytes().startswith(b"\x89PNG") and "jsd" in (tmp_path / "full.md").read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["cases"]) == 2 and len(results["vocabularies"]) == 1
    assert {"command", "commit", "machine", "threads", "versions", "date", "rounds"} <= results.keys()
    assert results["command"].startswith("python -m eval.benchmarks.head") and f"1 threads, {results['date']}; " in text
    times = [m["seconds"] for m in results["cases"][0]["measured"]]
    assert all(len(rounds) == 2 for rounds in times)
    assert len(times) == 2 * 3 + 2 + 1, "floor, loss and after at each share; two with statistics; torch"
    assert all(m["peak_bytes"] > 0 for m in results["cases"][0]["measured"] if m["name"] != "floor")


@pytest.mark.parametrize("words", ["--shapes nano", "--contenders ours,theirs", "--shares ,", "--frozen maybe"])
def test_what_does_not_exist_is_refused_in_one_line(words: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as refused:
        main(words.split())
    assert refused.value.code == 2 and words.split()[0] in capsys.readouterr().err.splitlines()[-1]
