"""Where the teacher's head lies follows from shapes and memory, and one line says why."""

from dataclasses import replace

import peft
import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers import LlamaConfig

from opd.config import Recipe
from opd.errors import RecipeError
from opd.head.cost import HeadShape, rank_bytes
from opd.head.pay import DensePay
from opd.head.settings import HeadSettings
from opd.head.weights import HeadWeights
from opd.objectives import OBJECTIVES
from opd.student import SelectiveHead
from opd.teacher.base import TeacherScores
from opd.teacher.placement import Placement, check_rounding, place_head
from opd.vocab_ranks import RankShard
from tests import cases
from tests.head.test_cost import Allocations
from tests.test_architectures import FAMILIES


def config(hidden: int, *, tied: bool = False, vocabulary: int = 128_256) -> LlamaConfig:
    return LlamaConfig(vocab_size=vocabulary, hidden_size=hidden, tie_word_embeddings=tied)


def recipe(head: str, name: str = "all", **more) -> Recipe:
    """Llama-3.3-70B teaches Llama-3.1-8B, as far as the head can see."""
    teacher = {"type": "local", "model": "teacher", "head": head}
    plain = {"teacher": teacher, "precision": "bf16", "token_budget": 1024, "prompts_per_step": 64}
    return cases.recipe(name, **plain | more)


def placed(chosen: Recipe, *, ranks: int = 8, tied: bool = False) -> Placement:
    return place_head(chosen, config(4096), config(8192, tied=tied, vocabulary=128_000), ranks)


def test_a_teacher_in_parts_keeps_its_precision():
    """A router's bias of GLM-4-MoE: ZeRO-3 rounds even a buffer that asks for fp32."""
    teacher = {"type": "local", "model": "teacher", "shard": "zero3"}
    bf16 = cases.recipe(teacher=teacher, precision="bf16")
    with pytest.raises(RecipeError, match=r"would round e_score_correction_bias of 'teacher' .*teacher\.shard=none"):
        check_rounding(bf16, FAMILIES["glm4-moe"])
    check_rounding(bf16, FAMILIES["llama"])
    check_rounding(cases.recipe(teacher=teacher), FAMILIES["glm4-moe"])
    check_rounding(cases.recipe(precision="bf16"), FAMILIES["glm4-moe"])


def test_auto_cuts_a_large_head_over_few_tokens():
    got = placed(recipe("auto"))
    assert (got.ranks, got.vocabulary) == (8, 128_000)
    assert "by vocabulary over 8 ranks: a rank needs" in got.words and "token_budget 1024" in got.words


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_cuts_a_70b_teachers_head_under_the_papers_micro_batches(device: str, monkeypatch):
    """128 rollouts of up to 8,192 tokens over eight ranks: 131,072 rows, of which no device takes all at once."""
    monkeypatch.setattr("opd.teacher.placement.device_type", lambda: device)
    long = {"type": "transformers", "samples_per_prompt": 16, "max_new_tokens": 8192}
    assert placed(recipe("auto", token_budget=16_384, prompts_per_step=8, rollout=long)).ranks == 8


def test_auto_keeps_it_whole_where_parts_would_take_more():
    """A small teacher of a wide student in fp32: a part of the student's gradient is there beside the whole."""
    got = place_head(recipe("auto", precision="fp32"), config(8192), config(512), 2)
    assert got.ranks == 1
    assert "whole on each rank: by vocabulary over 2 ranks each would take 1." in got.words and "more" in got.words


@pytest.mark.parametrize(("targets", "words"), [(["all-linear"], "would save only"), (["lm_head"], "more at")])
def test_the_gradient_of_a_head_that_does_not_train_is_not_counted(targets: list[str], words: str):
    student = {"model": "student", "lora": {"targets": targets}}
    got = place_head(recipe("auto", precision="fp32", student=student), config(8192), config(512), 2)
    assert words in got.words


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


def test_ranks_that_share_sequences_have_a_piece_of_each_micro_batch():
    """A rank has half of the tokens that one alone would have."""
    got = placed(recipe("auto", sequence_parallel_size=2))
    assert "at 512 trained tokens a micro-batch (token_budget 1024)" in got.words


def test_what_the_recipe_says_is_done():
    small = place_head(recipe("by_vocabulary"), config(64), config(128), 2)
    assert small.words == "the teacher's head by vocabulary over 2 ranks: as the recipe says"
    assert placed(recipe("whole")).words == "the teacher's head whole on each rank: as the recipe says"


def among(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as the first of so many ranks, the others of which bring what it brings, or nothing to a sum."""
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: ranks)
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 0)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group=None: None)
    monkeypatch.setattr(dist, "all_gather", lambda parts, tensor, group=None: [part.copy_(tensor) for part in parts])


def held_bytes(linear: nn.Module, shape: HeadShape, ranks: int) -> int:
    """What a rank holds of the teacher's part, and at worst of loss and backward of the student's head."""
    shard = RankShard.of_rank(shape.vocabulary) if ranks > 1 else None
    held, dtype = shape.vocabulary if shard is None else shard.stop, linear.weight.dtype
    teacher = HeadWeights(torch.randn(held, shape.teacher_hidden, dtype=dtype))
    head = SelectiveHead(linear, config(shape.hidden, vocabulary=shape.vocabulary), tokens=shape.vocabulary)
    hidden_CH = torch.randn(shape.rows, shape.hidden, dtype=dtype, requires_grad=True)
    scores = TeacherScores(torch.randn(shape.rows, shape.teacher_hidden, dtype=dtype), teacher, shard)
    ids_C, settings = torch.arange(shape.rows) % shape.vocabulary, HeadSettings(tile_bytes=shape.tile_bytes)
    pays = [DensePay(OBJECTIVES["reverse_kl"](), torch.ones(shape.rows))]
    with Allocations() as found:
        loss, _ = head(hidden_CH, None, ids_C, scores, settings, ["reverse_kl"], lambda _: pays, None)
        loss.backward()
    return teacher.weight_VH.nbytes + found.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("rows", [64, 1500])
def test_the_formula_is_what_a_rank_holds(rows: int, ranks: int, dtype: torch.dtype, monkeypatch):
    """Within 15 %, as all of `cost`: the teacher's part, and loss and backward of the head's module."""
    among(ranks, monkeypatch)
    shape = HeadShape(rows, 96, 128, 10_000, itemsize=dtype.itemsize, tile_bytes=4 << 20)
    linear = nn.Linear(shape.hidden, shape.vocabulary, bias=False, dtype=dtype)
    assert held_bytes(linear, shape, ranks) == pytest.approx(rank_bytes(shape, ranks), rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_frozen_head_holds_no_gradient_and_an_adapted_one_a_weight_more_at_most(
    ranks: int, dtype: torch.dtype, monkeypatch
):
    among(ranks, monkeypatch)
    shape = HeadShape(64, 96, 128, 20_000, itemsize=dtype.itemsize, tile_bytes=8 << 20)
    linear = nn.Linear(shape.hidden, shape.vocabulary, bias=False, dtype=dtype).requires_grad_(False)
    frozen = rank_bytes(replace(shape, trains_head=False), ranks)
    assert held_bytes(linear, shape, ranks) == pytest.approx(frozen, rel=0.15)
    adapted = peft.tuners.lora.Linear(linear, "default", peft.LoraConfig(), r=4, lora_alpha=8)
    most = rank_bytes(shape, ranks) + linear.weight.nbytes
    least = most if ranks == 1 else rank_bytes(shape, ranks)  # the part's weight goes before its gradient is cut
    assert 0.85 * least < held_bytes(adapted, shape, ranks) < 1.15 * most
