"""Where the teacher lies: its head whole on every rank or by vocabulary, its weights here, in parts or in waiting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from opd.config import Recipe
from opd.distributed import device_type, elsewhere
from opd.errors import RecipeError
from opd.head.cost import HeadShape, rank_bytes, tile_bytes_of
from opd.models import DTYPES, empty_model, text_config
from opd.teacher.settings import LocalTeacherSettings

WORTH_BYTES = 1 << 30
"""`auto` cuts the head where a rank wins this or more: less is not worth sending every token's states to every rank."""


@dataclass(frozen=True)
class Placement:
    """Over how many ranks the teacher's head is cut (1: each holds it whole), and why.

    vocabulary: tokens that both heads know, which are what is cut.
    """

    ranks: int
    vocabulary: int
    why: str

    @property
    def words(self) -> str:
        """One line for the user."""
        place = "whole on each rank" if self.ranks == 1 else f"by vocabulary over {self.ranks} ranks"
        return f"the teacher's head {place}: {self.why}"


def check_weights(settings: LocalTeacherSettings, ranks: int) -> None:
    """RecipeError where the teacher's weights can't be shared, or would be in main memory anyway."""
    if settings.shard == "zero3" and ranks == 1:
        raise RecipeError(
            "'teacher.shard: zero3' can't be had: there is one rank; launch more processes, or set teacher.shard=none"
        )
    if settings.offload and not torch.cuda.is_available():
        raise RecipeError(
            "'teacher.offload: true' has no effect without a GPU: all weights are in main memory anyway; "
            f"{elsewhere()}remove it"
        )


def check_rounding(recipe: Recipe, config: Any) -> None:
    """RecipeError for a teacher in parts of which transformers keeps something in fp32 that ZeRO-3 rounds to bf16."""
    if recipe.teacher.shard != "zero3" or recipe.precision != "bf16":
        return
    if kept := sorted(empty_model(config)._keep_in_fp32_modules_strict):
        raise RecipeError(
            f"'teacher.shard: zero3' would round {kept[0]} of {recipe.teacher.model!r} to bf16, which transformers "
            "keeps in fp32; set teacher.shard=none, or precision: fp32"
        )


def place_head(recipe: Recipe, student: Any, teacher: Any, ranks: int) -> Placement:
    """What the recipe asks for, or for `auto` what shapes and memory say; the same on every rank.

    student, teacher: the models' configurations. RecipeError where `by_vocabulary` is asked for and can't be had.
    """
    vocabulary = min(text_config(student).vocab_size, text_config(teacher).vocab_size)
    wish, obstacle = recipe.teacher.head, _obstacle(recipe, teacher, ranks)
    if wish == "by_vocabulary" and obstacle:
        why, way_out = obstacle
        raise RecipeError(f"'teacher.head: by_vocabulary' can't be had: {why}; {way_out}, or set teacher.head=auto")
    if wish != "auto":
        return Placement(ranks if wish == "by_vocabulary" else 1, vocabulary, "as the recipe says")
    if obstacle:
        return Placement(1, vocabulary, obstacle[0])
    shape = head_shape(recipe, student, teacher, ranks)
    wins = rank_bytes(shape) - rank_bytes(shape, ranks)
    at = f"at {shape.rows} trained tokens a micro-batch (token_budget {recipe.token_budget})"
    if wins >= WORTH_BYTES:
        return Placement(ranks, vocabulary, f"a rank needs {_gib(wins)} less {at}")
    saves = f"take {_gib(-wins)} more" if wins < 0 else f"save only {_gib(wins)}"
    return Placement(1, vocabulary, f"by vocabulary over {ranks} ranks each would {saves} {at}")


def _obstacle(recipe: Recipe, teacher: Any, ranks: int) -> tuple[str, str] | None:
    """(why the head can't be cut, the way out), if so."""
    if ranks == 1:
        return "there is one rank", "launch more processes"
    if whole := [term.objective.type for term in recipe.loss if not term.objective.streams]:
        return f"objective {whole[0]!r}, as set here, needs whole rows of logits", "choose another objective"
    if getattr(text_config(teacher), "tie_word_embeddings", False):
        return "it is the teacher's embedding too, which every rank needs whole", "take an untied teacher"
    return None


def head_shape(recipe: Recipe, student: Any, teacher: Any, ranks: int) -> HeadShape:
    """The head's work in the largest micro-batch of a rank. student, teacher: the models' configurations."""
    most = recipe.rollouts_per_data_rank(ranks) * recipe.rollout.max_new_tokens
    return HeadShape(
        rows=min(-(-recipe.token_budget // recipe.sequence_parallel_size), most),
        hidden=text_config(student).hidden_size,
        teacher_hidden=text_config(teacher).hidden_size,
        vocabulary=text_config(teacher).vocab_size,
        itemsize=DTYPES[recipe.precision].itemsize,
        trains_head=recipe.student.lora is None or recipe.student.lora.adapts_head,
        tile_bytes=tile_bytes_of(recipe.tile_mib, device_type()),
        device=device_type(),
    )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
