"""Recipes: defaults, the architecture's example, overrides, and a resolved recipe that reads as itself."""

import json

import pytest
import yaml

from opd.config import Recipe
from opd.errors import RecipeError
from opd.objectives import OBJECTIVES
from opd.recipe_text import dump_recipe, field_lines, load_recipe, parse_recipe
from opd.selection import SELECTORS

SMALLEST = """
student: {model: s}
teacher: {model: t}
prompts: {path: p.jsonl}
loss: [{objective: {type: reverse_kl}}]
"""
ARCHITECTURE = """
student: {model: Qwen/Qwen3-4B}
teacher: {type: local, model: Qwen/Qwen3-8B}
prompts: {dataset: BytedTsinghua-SIA/DAPO-Math-17k, split: train, chat_template_kwargs: {enable_thinking: false}}
rollout: {type: vllm, samples_per_prompt: 16, max_new_tokens: 8192, temperature: 1.0}
loss:
  - select: {type: soft_or, keep: 0.5}
    objective: {type: reverse_kl}
optimizer: {lr: 1.0e-6, betas: [0.9, 0.999], weight_decay: 0.1, schedule: cosine, warmup: 0, max_grad_norm: 1.0}
steps: 200
prompts_per_step: 8
token_budget: 16384
precision: bf16
seed: 0
published: {scores: {math500: 79.1, aime24: 25.7}, protocol: mean@16 at T=1.0, source: "arXiv 2604.14084 v4"}
reproduced_elsewhere: {scores: {math500: 79.0}, protocol: not stated, source: others, teacher: plain Qwen3-8B}
measured: null          # or score ± standard error, steps, hardware, commit, command
"""


def smallest(**more) -> Recipe:
    return parse_recipe(yaml.safe_load(SMALLEST) | more)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "r.yaml").write_text(ARCHITECTURE)
    return tmp_path / "r.yaml"


def test_defaults():
    recipe = smallest()
    assert recipe.loss[0].select.type == "all" and recipe.loss[0].weight == 1
    assert (recipe.optimizer.lr, recipe.optimizer.betas, recipe.optimizer.weight_decay) == (1e-6, (0.9, 0.999), 0.1)
    assert (recipe.optimizer.schedule, recipe.optimizer.warmup, recipe.optimizer.max_grad_norm) == ("cosine", 0, 1.0)
    assert (recipe.rollout.type, recipe.rollout.samples_per_prompt, recipe.rollout.temperature) == ("auto", 16, 1.0)
    assert (recipe.steps, recipe.prompts_per_step, recipe.token_budget, recipe.precision) == (200, 8, 16384, "bf16")
    assert recipe.evaluate is None and recipe.measured is None and recipe.seed == 0
    assert SELECTORS["soft_or"]().model_dump() == {
        "keep": 0.5,
        "choose": "top",
        "per": "rollout",
        "scope": "batch",
        "type": "soft_or",
        "clip": 0.98,
        "clip_divergence": 1.0,
    }


def test_the_example_of_the_architecture_parses(path):
    recipe = load_recipe(path)
    assert recipe.loss[0].select == SELECTORS["soft_or"](keep=0.5)
    assert recipe.loss[0].objective == OBJECTIVES["reverse_kl"]()
    assert recipe.needs == {"student_entropy", "reverse_kl"}
    assert recipe.published.scores["math500"] == 79.1 and recipe.prompts.chat_template_kwargs == {
        "enable_thinking": False
    }


def needed_beside(override: str) -> list[str]:
    """What a part that reads rewards asks of the rest of a recipe."""
    if not any(name in override for name in ("tgdpo", "task_reward", "d3s")):
        return []
    return ["prompts.answer=answer", *([] if "tgdpo" in override else ["advantage=reward"])]


@pytest.mark.parametrize(
    "override",
    [
        "seed=3",
        "prompts={path: p.jsonl, answer: answer, answer_after: '####'}",
        "evaluate={task: arithmetic}",
        "metrics.trackers=[tensorboard]",
        "published={scores: {math500: 1.5}, protocol: mean@16, source: a paper, note: ± 2}",
        "loss.0.select.choose=sample",
        *(f"loss.0.select={{type: {name}}}" for name in SELECTORS),
        *(f"loss.0.objective={{type: {name}}}" for name in OBJECTIVES),
        "loss.0.select.keep={start: 0.2, end: 1.0, shape: cosine}",
        "rollout_selection={type: random, keep_rollouts: {start: 2, end: 8}, multiple: 2}",
        "loss.0.select={type: entropy, choose: gate}",
    ],
)
def test_a_resolved_recipe_reads_as_itself(override, path):
    recipe = load_recipe(path, [override, *needed_beside(override)])
    stored = path.with_name("resolved.yaml")
    stored.write_text(dump_recipe(recipe))
    assert load_recipe(stored) == recipe
    assert yaml.safe_load(stored.read_text()).keys() == Recipe.model_fields.keys()


def test_overrides(path):
    overrides = [
        "loss.0.select.keep=0.3",
        "optimizer.betas=[0.8, 0.9]",
        "optimizer.betas.1=0.95",
        "evaluate.task=gsm8k",
        "prompts.instruction='a=b'",
        "optimizer.lr=1e-4",
        "steps=5",
        "steps=6",
    ]
    recipe = load_recipe(path, overrides)
    assert recipe.loss[0].select.keep == 0.3
    assert recipe.optimizer.betas == (0.8, 0.95)
    assert recipe.evaluate.task == "gsm8k" and recipe.evaluate.problems == 200
    assert recipe.prompts.instruction == "a=b"
    assert recipe.optimizer.lr == 1e-4
    assert recipe.steps == 6, "the last override wins"
    assert load_recipe(path) == load_recipe(path, [])


def test_a_budget_that_just_holds_one_rollout_is_enough():
    assert smallest(token_budget=2048 + 1024).token_budget == 3072
    with pytest.raises(RecipeError, match="raise it to 3072"):
        smallest(token_budget=3071)


def test_a_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        smallest().steps = 3


def test_a_misspelt_key_comes_before_what_is_missing_because_of_it():
    with pytest.raises(RecipeError, match=r"^unknown key 'studnet'.*did you mean 'student'"):
        parse_recipe({"studnet": {"model": "s"}})


def test_several_problems_are_one_line():
    with pytest.raises(RecipeError) as error:
        smallest(steps=0, seed="x")
    assert "steps" in str(error.value) and "seed" in str(error.value) and "\n" not in str(error.value)


def test_every_field_at_every_depth_has_a_line_with_its_sentence():
    lines = {line.key: line for line in field_lines()}
    for key in ("student.model", "loss.0.select(soft_or).clip", "loss.0.objective(jsd).beta", "evaluate.task", "seed"):
        assert key in lines
    assert [key for key, line in lines.items() if not line.sentence] == []
    lr, select = lines["optimizer.lr"], lines["loss.0.select"]
    assert (lr.type, lr.default, lr.sentence) == ("float > 0", "1e-06", "Peak learning rate.")
    assert (select.type, select.default) == (" | ".join(SELECTORS), "all")
    assert lines["student.model"].default == "required" and lines["evaluate"].default == "null"
    assert {key.split(".")[0].split("(")[0] for key in lines} == Recipe.model_fields.keys()
    assert lines["loss.0.select(soft_or).keep"].type == "float > 0, <= 1 | ramp"


def test_the_json_schema_holds_every_sentence():
    text = json.dumps(Recipe.model_json_schema(), ensure_ascii=False)
    assert "Peak learning rate." in text and "1 is reverse KL" in text
