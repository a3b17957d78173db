"""A table in Markdown."""

from collections.abc import Iterable


def markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(["task", "n"], [["gsm8k", "400"]]), end="")
    | task | n |
    | --- | --- |
    | gsm8k | 400 |
    """
    heads = list(heads)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, ["---"] * len(heads), *rows))
