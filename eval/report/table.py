"""Tables of results: scores and paired comparisons; as Markdown, and as rich shows them."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table as RichTable

from eval.results import Result
from eval.statistics import ALPHA, POWER, Comparison, compare
from opd.errors import RunError
from opd.report.markdown import markdown


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of as many cells, and what the cells mean."""

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]
    caption: str

    def markdown(self) -> str:
        """As Markdown."""
        return f"## {self.title}\n\n{markdown(self.heads, self.rows)}\n{self.caption}\n"

    def rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(title=self.title, title_justify="left", caption=self.caption, caption_justify="left")
        for head in self.heads:
            table.add_column(head, overflow="fold")
        for cells in self.rows:
            table.add_row(*cells)
        return table


SCORES_CAPTION = (
    "avg: mean over a problem's answers, then over problems, ± standard error clustered by problem, and its 95 % "
    "interval; an answer counts however it is written, strict only in a box. pass@k: one of k answers is right; maj@k: "
    "their vote is. cut off: answers that reached the length limit; no box: answers without a box, whose "
    "last phrase or value was graded. length in tokens, mean."
)


def scores_table(results: list[Result]) -> Table:
    """A row for each model and task."""
    heads = ("model", "task", "n", "answers", "avg", "95 %", "strict")
    heads += ("pass@k", "maj@k", "length", "cut off", "no box")
    return Table("Scores", heads, [_score_row(result) for result in results], SCORES_CAPTION)


def _score_row(result: Result) -> tuple[str, ...]:
    s = result.score
    several = s["samples_per_problem"] > 1
    top = str(s["samples_per_problem"])
    return (
        result.model,
        f"{result.task} v{result.identity['version']}",
        str(s["n"]),
        _sampling(result),
        f"{s['score']:.1%}{_stderr(s['stderr'], s['n'])}",
        f"{s['low']:.1%} to {s['high']:.1%}",
        f"{s['strict']:.1%}{_stderr(s['strict_stderr'], s['n'])}",
        f"{s['pass'][max(s['pass'], key=int)]:.1%} @{max(s['pass'], key=int)}" if several else "–",
        f"{s['majority'][top]:.1%} @{top}" if several else "–",
        f"{s['tokens']:,.0f}",
        "".join([f"{s['truncated']:.1%}", *(f", {s[k]:.1%} {k}" for k in ("failed", "undecided") if s[k])]),
        f"{s['unboxed']:.1%}",
    )


def _stderr(value: float, n: int) -> str:
    return f" ± {value:.1%}" if n > 1 else ""


def _sampling(result: Result) -> str:
    identity = result.identity
    if not identity["temperature"]:
        return "greedy"
    return f"{identity['samples']}, T={identity['temperature']:g}"


def comparison_table(pairs: list[tuple[Result, Result]]) -> Table:
    """A row for each pair of results on the same problems."""
    rows = []
    for ours, theirs in pairs:
        c = compare_results(ours, theirs)
        rows.append(
            (
                f"{ours.model} − {theirs.model}",
                f"{ours.task} v{ours.identity['version']}",
                str(c.n),
                f"{c.difference:+.1%} ± {c.stderr:.1%}",
                f"{c.low:+.1%} to {c.high:+.1%}" if c.stderr else "–",
                _p(c.bootstrap_p) if c.stderr else "–",
                "–" if c.mcnemar is None else _p(c.mcnemar),
                f"{c.detectable:.1%}" if c.stderr else "–",
            )
        )
    heads = ("models", "task", "n", "difference", "95 %", "p", "McNemar p", f"visible at {POWER:.0%}")
    otherwise = [note for pair in pairs if (note := _asked_otherwise(*pair))]
    return Table("Paired comparisons", heads, rows, " ".join([COMPARISON_CAPTION, *otherwise]))


def _asked_otherwise(ours: Result, theirs: Result) -> str:
    """What but the weights differs between two models that answered the same problems."""
    mine, others = ours.identity, theirs.identity
    found = [f"{key} {mine.get(key)} and {others.get(key)}" for key in PROTOCOL if mine.get(key) != others.get(key)]
    if mine["prompts"] != others["prompts"]:
        found.append("the prompts' tokens (template, system message or tokenizer)")
    return f"{ours.model} and {theirs.model} were not asked alike: {', '.join(found)}." if found else ""


PROTOCOL = (
    "form", "shots", "thinking", "samples", "temperature", "top_p", "top_k", "max_new_tokens", "engine", "device",
    "precision",
)  # fmt: skip
"""What of a result's identity an answer depends on, beside weights and prompts."""

COMPARISON_CAPTION = (
    "On the same problems, so that what is hard for both cancels: difference ± standard error clustered by problem, "
    "its t interval, p of a paired bootstrap over problems, and for one answer a problem McNemar's exact p, which is "
    "the one to read where few problems differ: a bootstrap is then too sure. No p is corrected for the number of "
    "rows; a dash stands where all problems differ alike. visible: the true difference that this many problems of this "
    f"spread find with {POWER:.0%} power at p < {ALPHA:g}."
)


def compare_results(ours: Result, theirs: Result) -> Comparison:
    """Both results, problem by problem. Raises RunError where they are not of the same problems."""
    for key in ("task", "version", "problems", "data"):
        if ours.identity[key] != theirs.identity[key]:
            raise RunError(
                f"{ours.model} and {theirs.model} answered other problems ({key}: {ours.identity[key]!r} and "
                f"{theirs.identity[key]!r}); compare results of one task, version and number of problems"
            )
    if len(ours.graded) < 2:
        raise RunError(f"{ours.model} and {theirs.model} answered one problem, and a comparison needs two or more")
    if ours.grader != theirs.grader:
        raise RunError(
            f"{ours.model} was graded by version {ours.grader} of the grader and {theirs.model} by {theirs.grader}; "
            "run opd eval again with the options that made them: it grades anew, and samples nothing"
        )
    return compare(ours.flexible, theirs.flexible)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
