"""The comparison's table in Markdown, and what its cells mean."""

from typing import Any

from eval.comparison.results import MEASURES
from eval.statistics import ALPHA, POWER
from opd.report.markdown import markdown


def table(results: dict[str, Any]) -> str:
    """The Markdown table: one row an arm, the untrained student first and the teacher last."""
    start, teacher = results["start"], results["teacher"]
    titles = ("arm", "seeds", "tokens trained on", "kept")
    for title in ("exact match, %", "reverse KL on fixed text, nats a token"):
        titles += (title, "− full", "− random at the same share")
    blank = ["–", "–"]
    rows = [["student, untrained", "–", "0", "–", _percent(start["score"]), *blank, _nats(start["reverse_kl"]), *blank]]
    for name, arm in results["arms"].items():
        cells = [name, str(len(arm["seeds"])), f"{arm['tokens']['score']:,.0f}", f"{arm['kept']['score']:.0%}"]
        for measure, shown, scale, digits in (("score", _percent, 100, 1), ("reverse_kl", _nats, 1, 4)):
            cells.append(shown(arm[measure]))
            cells += [_test(arm["against"].get(to, {}).get(measure), scale, digits) for to in ("full", "random")]
        rows.append(cells)
    rows.append(["teacher", "–", "–", "–", _percent(teacher), *blank, "0", *blank])
    return markdown(titles, rows)


def caption(results: dict[str, Any]) -> str:
    """What the table's cells mean, and what the runs' own spread could show."""
    tests = [t for arm in results["arms"].values() for by in arm["against"].values() for t in by.items() if "p" in t[1]]
    seen = {m: [t["detectable"] for measure, t in tests if measure == m and t["detectable"]] for m in MEASURES}
    text = (
        "Mean ± standard error over seeds (start and teacher: over problems); differences are paired by seed, with "
        f"their 95 % interval and the p of a paired t-test, Holm-corrected over all {len(tests)} tests of the table. "
        "Arms of one seed have a difference only. Each seed has its own fixed text, which most of the error of a mean "
        "reverse KL comes from, and none of a difference. "
    )
    if all(seen.values()):
        middle = {measure: sorted(found)[len(found) // 2] for measure, found in seen.items()}
        text += (
            "By these runs' own spread a true difference of "
            f"{100 * middle['score']:.1f} points of exact match or {middle['reverse_kl']:.4f} nats (medians; at most "
            f"{100 * max(seen['score']):.1f} and {max(seen['reverse_kl']):.4f}) would have been found with {POWER:.0%} "
            f"power at p < {ALPHA} uncorrected."
        )
    return text.strip()


def _percent(value: dict[str, float]) -> str:
    return _pm(value, 100, 1)


def _nats(value: dict[str, float]) -> str:
    return _pm(value, 1, 4)


def _pm(value: dict[str, float], scale: float, digits: int) -> str:
    error = f" ± {scale * value['stderr']:.{digits}f}" if value["n"] > 1 else ""
    return f"{scale * value['score']:.{digits}f}{error}"


def _test(test: dict[str, float] | None, scale: float, digits: int) -> str:
    if not test:
        return "–"
    shown = f"{scale * test['difference']:+.{digits}f}"
    if "p" not in test:
        return shown
    p = "p < 0.001" if test["p_holm"] < 0.001 else f"p = {test['p_holm']:.3f}"
    if not test["detectable"]:  # no spread, no interval
        return f"{shown}, {p}"
    return f"{shown} [{scale * test['low']:+.{digits}f}, {scale * test['high']:+.{digits}f}], {p}"
