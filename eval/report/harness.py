"""Results in the form of lm-evaluation-harness's results file: `results`, `n-samples`, `versions`, `configs`."""

from __future__ import annotations

from typing import Any

from eval.results import Result


def harness_results(results: list[Result]) -> dict[str, Any]:
    """One model's results as that harness writes them, metrics named `metric,filter` with their `_stderr`.

    strict (here: in a box) and flexible are filters, as in its GSM8K; `exact_match` is the mean over a problem's
    answers. `original` counts the problems that were asked for.
    """
    first = results[0]
    return {
        "results": {result.task: _metrics(result) for result in results},
        "n-shot": {result.task: result.identity["shots"] for result in results},
        "n-samples": {
            result.task: {"original": result.identity["problems"], "effective": result.score["n"]} for result in results
        },
        "versions": {result.task: result.identity["version"] for result in results},
        "higher_is_better": {result.task: dict.fromkeys(["exact_match", *_passes(result)], True) for result in results},
        "configs": {result.task: {"task": result.task, "repeats": result.identity["samples"]} for result in results},
        "config": {"model": "opd", "model_args": f"pretrained={first.model}", "model_sha": first.identity["weights"]},
        "git_hash": first.environment["commit"],
        "model_name": first.model,
    }


def _metrics(result: Result) -> dict[str, float | str]:
    s = result.score
    passes = {f"{name},flexible-extract": value for name, value in _passes(result).items()}
    return {
        "alias": result.task,
        "exact_match,strict-match": s["strict"],
        "exact_match_stderr,strict-match": s["strict_stderr"],
        "exact_match,flexible-extract": s["score"],
        "exact_match_stderr,flexible-extract": s["stderr"],
    } | passes


def _passes(result: Result) -> dict[str, float]:
    return {f"pass@{k}": value for k, value in result.score["pass"].items()}
