"""Where the teacher's head lies follows from shapes and memory, and one line says why."""

import pytest
from transformers import LlamaConfig

from opd.config import Recipe
from opd.errors import RecipeError
from opd.teacher.placement import Placement, place_head
from tests import cases


def config(hidden: int, *, tied: bool = False, vocabulary: int = 128_256) -> LlamaConfig:
    return LlamaConfig(vocab_size=vocabulary, hidden_size=hidden, tie_word_embeddings=tied)


def recipe(head: str, name: str = "all", **more) -> Recipe:
    """Llama-3.3-70B teaches Llama-3.1-8B, as far as the head can see."""
    teacher = {"type": "local", "model": "teacher", "head": head}
    plain = {"teacher": teacher, "precision": "bf16", "token_budget": 1024, "prompts_per_step": 64}
    return cases.recipe(name, **plain | more)


def placed(chosen: Recipe, *, ranks: int = 8, tied: bool = False) -> Placement:
    return place_head(chosen, config(4096), config(8192, tied=tied, vocabulary=128_000), ranks)


def test_auto_cuts_a_large_head_over_few_tokens():
    got = placed(recipe("auto"))
    assert (got.ranks, got.vocabulary) == (8, 128_000)
    assert "by vocabulary over 8 ranks: a rank needs" in got.words and "token_budget 1024" in got.words


def test_auto_keeps_it_whole_where_other_ranks_states_are_larger():
    got = placed(recipe("auto", token_budget=65536, prompts={"path": "x.jsonl", "max_tokens": 12}, **LONG))
    assert got.ranks == 1
    assert "whole on each rank" in got.words and "GiB more" in got.words and "65536" in got.words


LONG = {"rollout": {"max_new_tokens": 8192, "type": "transformers", "samples_per_prompt": 8}}


def test_auto_leaves_a_small_head_alone():
    small = place_head(recipe("auto"), config(64), config(128), 2)
    assert small.ranks == 1 and "would save only 0.0" in small.words


@pytest.mark.parametrize(
    ("name", "more", "why", "way_out"),
    [
        ("all", {"ranks": 1}, "there is one rank", "launch more processes"),
        ("uskd", {}, "objective 'uskd', as set here, needs whole rows", "choose another objective"),
        ("teacher_top", {}, "objective 'reverse_kl', as set here, needs whole rows", "choose another objective"),
        ("all", {"tied": True}, "the teacher's embedding too", "take an untied teacher"),
    ],
    ids=["one rank", "rows", "outcomes", "tied"],
)
def test_what_can_not_be_cut_is_refused_where_it_was_asked_for_and_said_where_it_was_not(name, more, why, way_out):
    got = placed(recipe("auto", name), **more)
    assert got.ranks == 1 and why in got.words
    with pytest.raises(RecipeError) as error:
        placed(recipe("by_vocabulary", name), **more)
    assert "'teacher.head: by_vocabulary'" in str(error.value) and why in str(error.value)
    assert way_out in str(error.value) and "\n" not in str(error.value)
    assert placed(recipe("whole", name), **more).ranks == 1


def test_what_the_recipe_says_is_done():
    assert placed(recipe("by_vocabulary", **LONG, token_budget=65536)).ranks == 8
    assert placed(recipe("whole")).words == "the teacher's head whole on each rank: as the recipe says"
