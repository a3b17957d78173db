"""Every answer to another trainer's word is a key that there is, and no word has two answers."""

import pytest

from opd.errors import RecipeError
from opd.recipe_text import field_lines, parse_recipe
from opd.synonyms import ELSEWHERE, NOT_HERE

WORDS = [word for table in (ELSEWHERE, NOT_HERE) for words in table.values() for word in words]


def test_answers_are_keys_that_there_are():
    keys = {line.key for line in field_lines()}
    assert {answer for answer in ELSEWHERE if "=" not in answer} <= keys
    assert len(WORDS) == len(set(WORDS))


@pytest.mark.parametrize("word", WORDS)
def test_a_word_at_the_top_is_answered(word):
    data = {
        "student": {"model": "s"},
        "teacher": {"model": "t"},
        "prompts": {"path": "p"},
        "loss": [{"objective": {"type": "reverse_kl"}}],
    }
    with pytest.raises(RecipeError) as refused:
        parse_recipe(data | {word: 1})
    answer = next(a for table in (ELSEWHERE, NOT_HERE) for a, words in table.items() if word in words)
    assert str(refused.value).startswith(f"unknown key {word!r}") and answer in str(refused.value)
