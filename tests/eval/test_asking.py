"""How a model is asked: the task's own protocol and what may be changed of it, both forms, and what identifies it."""

import dataclasses
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from eval.asking import Asking, ask, few_shot
from eval.tasks import TASKS
from eval.tasks.base import Shot
from opd.errors import DataError, RecipeError

GSM8K, AIME = TASKS["gsm8k"], TASKS["aime24"]


@pytest.mark.parametrize(
    "task, asked, samples, temperature",
    [
        (GSM8K, {}, 1, 0.0),
        (AIME, {}, 16, 1.0),
        (GSM8K, {"samples": 4}, 4, 1.0),
        (AIME, {"samples": 4}, 4, 1.0),
        (AIME, {"temperature": 0.0}, 1, 0.0),
        (AIME, {"temperature": 0.6}, 16, 0.6),
        (GSM8K, {"temperature": 0.6}, 1, 0.6),
        (AIME, {"samples": 1}, 1, 1.0),
    ],
)
def test_the_papers_protocol_unless_told_otherwise(task, asked, samples, temperature):
    sampling = Asking(**asked).sampling(task)
    assert (sampling.samples, sampling.temperature) == (samples, temperature)
    assert (sampling.top_p, sampling.top_k) == (1.0, 0)
    assert sampling.max_new_tokens == task.sampling.max_new_tokens


@pytest.mark.parametrize(
    "asked", [{"samples": 2, "temperature": 0.0}, {"temperature": 0.0, "top_p": 0.9}, {"temperature": 0.0, "top_k": 5}]
)
def test_what_would_have_no_effect_is_refused(asked):
    with pytest.raises(RecipeError, match=r"greedy answers"):
        Asking(**asked).sampling(AIME)


def test_samples_are_keyed_by_task_and_seed():
    keys = {Asking(seed=s).sampling(task).seed_key for s in (0, 1) for task in (GSM8K, AIME)}
    assert len(keys) == 4


@pytest.fixture
def tokenizer(toy):
    return AutoTokenizer.from_pretrained(toy / "student")


def test_everything_that_an_answer_depends_on_is_in_the_identity(tokenizer):
    task = TASKS["arithmetic"]
    base = ask(task, tokenizer, Asking(problems=5)).identity()
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    assert ask(task, tokenizer, Asking(problems=5)).identity() == base
    assert ask(task, tokenizer, Asking(problems=5, seed=3)).identity()["seed"] is None, "greedy: the seed is not read"
    tokenizer.chat_template = "{{ messages[0]['content'] }}+"
    assert ask(task, tokenizer, Asking(problems=5)).identity() != base


CHANGED = {
    "problems": 4,
    "samples": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 7,
    "max_new_tokens": 9,
    "thinking": "on",
    "form": "few_shot",
    "seed": 3,
    "system": "1+1=",
}


@pytest.mark.parametrize("key", Asking.model_fields)
def test_each_option_changes_the_identity_and_what_the_engine_gets(tokenizer, key):
    """Every one of them, by the record itself: none is forgotten."""
    tokenizer.chat_template = "{{ messages | map(attribute='content') | join }}{{ 1 if enable_thinking else '' }}"
    task = dataclasses.replace(TASKS["arithmetic"], shots=(Shot("1+1=", "2"),))
    common = {"problems": 5} | ({"temperature": 1.0} if key in ("top_p", "top_k", "seed") else {})
    before, after = (ask(task, tokenizer, Asking(**common | more)) for more in ({}, {key: CHANGED[key]}))
    assert before.identity() != after.identity()
    assert (before.sampling, before.prompts) != (after.sampling, after.prompts)


def test_the_problems_themselves_are_in_the_identity(tokenizer):
    one, other = (
        dataclasses.replace(TASKS["arithmetic"], load=lambda n, a=a: [{"question": "1+1=", "answer": a}]) for a in "23"
    )
    identities = [ask(task, tokenizer, Asking()).identity() for task in (one, other)]
    assert identities[0]["data"] != identities[1]["data"] and identities[0]["prompts"] == identities[1]["prompts"]


def test_two_models_do_not_share_their_draws(tokenizer):
    asked = ask(TASKS["arithmetic"], tokenizer, Asking(problems=2, samples=2))
    assert len({asked.of_model(weights).sampling.seed_key for weights in ("a", "b")}) == 2
    assert asked.of_model("a").identity() == asked.identity()


def test_a_model_without_template_is_pointed_to_the_few_shot_form(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"no chat template; give a chat model, or --form few_shot"):
        ask(TASKS["arithmetic"], tokenizer, Asking(problems=1))
    with pytest.raises(RecipeError, match="arithmetic has no worked examples"):
        ask(TASKS["arithmetic"], tokenizer, Asking(problems=1, form="few_shot"))


@pytest.mark.parametrize("task", [t for t in TASKS.values() if t.shots], ids=lambda task: task.name)
def test_few_shots_are_worked_and_right(task):
    from opd.rewards import judge

    prompt = few_shot(task, "How many?")
    assert prompt.endswith("Question: How many?\nAnswer:") and prompt.count("Question:") == len(task.shots) + 1
    for shot in task.shots:
        final = judge(shot.worked, "0").final
        assert final.rule == "boxed" and final.text


def test_a_base_models_next_question_is_not_its_answer(toy, tokenizer, monkeypatch):
    task = SimpleNamespace(**vars(TASKS["gsm8k"]) | {"load": lambda n: [{"question": "1+1?", "answer": "2"}]})
    tokenizer.chat_template = None
    asked = ask(task, tokenizer, Asking(form="few_shot"))
    assert asked.answer(" It is 2.") == " It is 2."
    for mark in (
        "Question:",
        "Question 2:",
        "Q:",
        "Problem:",
        "**Question:**",
        "Human:",
        " Question:",
        "### Problem 3:",
    ):
        assert asked.answer(f" It is 2.\n\n{mark} 2+3?\nAnswer: 5").strip() == "It is 2."
    box = r" It is $\frac{4}{2} = \boxed{\frac{4}{2}}"
    assert asked.answer(box + "$. And now: 2+3 is \\boxed{5}") == box


@pytest.mark.parametrize(
    "template, inside", [("{{ messages[0]['content'] }}<think>", True), ("<think></think>", False)]
)
def test_a_template_that_opens_a_thought_is_noticed(toy, template, inside, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(toy / "student")
    tokenizer.chat_template = template
    monkeypatch.setattr(tokenizer, "decode", lambda ids: template)
    assert ask(TASKS["arithmetic"], tokenizer, Asking(problems=1)).in_thought is inside


def test_a_recipes_template_settings_win_and_nothing_is_added_to_them(tokenizer):
    tokenizer.chat_template = "{{ 1 if enable_thinking is not defined else 2 if enable_thinking else 3 }}"
    task = TASKS["arithmetic"]

    def shown(asking: Asking, settings: dict | None = None) -> str:
        return tokenizer.decode(ask(task, tokenizer, asking, settings).prompts[0].token_ids)

    assert shown(Asking(problems=1)) == "3" and shown(Asking(problems=1, thinking="on")) == "2"
    assert shown(Asking(problems=1, thinking="template")) == "1"
    assert shown(Asking(problems=1, thinking="template"), {"enable_thinking": True}) == "2"
