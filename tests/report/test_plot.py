"""A run's plot is drawn whatever its steps could not measure."""

from pathlib import Path

from opd.report.plot import plot_run
from opd.run import RunFolder

QUADRANTS = {"Q1": 0.2, "Q2": 0.1, "Q3": 0.3, "Q4": 0.4}


def test_steps_without_a_trained_token_leave_a_gap_and_no_traceback(tmp_path: Path):
    whole = {"reward": 0.5, "reverse_kl": 0.1} | QUADRANTS
    idle = dict.fromkeys(whole)
    lines = [{"step": step} | (idle if step == 2 else whole) for step in (1, 2, 3)]
    for metrics in (lines, lines[1:2]):
        plot_run(RunFolder(tmp_path), metrics, {})
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
