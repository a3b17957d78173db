"""The student: one module whose forward runs backbone and head, so that the sharded optimizer's own hooks gather it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from opd.batch import Batch
from opd.distributed import gathered
from opd.head.loss import head_loss
from opd.head.pay import Pay
from opd.head.settings import HeadSettings
from opd.head.statistics import row_statistics, with_normalisers
from opd.head.weights import HeadWeights, HiddenStates, align
from opd.lora import ADAPTER, LowRank, adapters, effective_weight, low_rank, plain_buffers, plain_parameters
from opd.models import dropout_rates, text_config
from opd.reading import backbone, head_weights, plain_head, trained_states
from opd.teacher.base import TeacherScores
from opd.vocab_ranks import AllRows, OwnRows

BUCKET_BYTES = 1 << 30
"""Weights stream to the engine in buckets of at most this."""

Statistics = dict[str, Tensor]
PaysOf = Callable[[Statistics], list[Pay]]
"""From a micro-batch's statistics to what its tokens pay."""


class SelectiveHead(nn.Module):
    """The lm_head under its own name and weights; its forward takes hidden states and never returns logits.

    A frozen weight gets no gradient, and no memory for one. With an adapter the head is W + scaling · B A, made anew in
    each forward: a second [V, H] in the weights' dtype, and in the loss its gradient in the working dtype, from which
    those of A and B follow; W itself gets none.
    """

    def __init__(self, head: nn.Module, config: object, *, tokens: int):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        if (adapter := low_rank(head)) is not None:
            self.lora_A, self.lora_B, self.scaling = adapter.lora_A, adapter.lora_B, adapter.scaling
        self.weight_rows = self.weight.shape[0]
        self.config, self.tokens = config, tokens

    def forward(
        self,
        hidden_CH: Tensor,
        weak_CH: Tensor | None,
        token_id_C: Tensor,
        teacher: TeacherScores,
        settings: HeadSettings,
        needs: Iterable[str],
        pays_of: PaysOf | None,
        known: Statistics | None,
    ) -> tuple[Tensor | None, Statistics]:
        """(loss or None, statistics): first the statistics named in `needs`, then the loss of what `pays_of` says.

        Where the teacher's head is cut by vocabulary, this rank goes over all ranks' N rows with its part of both
        heads; the statistics are of its own C rows, and the loss is its share of theirs.
        """
        rows, shard, (own, others) = OwnRows(), teacher.shard, self._heads(teacher)
        if shard is not None:
            rows = AllRows.of(len(hidden_CH), hidden_CH.device)
            shard = replace(shard, rows=rows)
        student, teacher = HiddenStates(hidden_CH, own), HiddenStates(teacher.hidden_NH, others)
        token_id_N = rows.gather({"token_id": token_id_C})["token_id"]
        found = row_statistics(with_normalisers(needs), student, teacher, token_id_N, settings, shard)
        statistics = rows.own(found)
        if pays_of is None:
            return None, statistics
        known = found | rows.gather(known or {})
        pays = [rows.gather_pay(pay) for pay in pays_of(statistics)]
        return rows.share(head_loss(student, teacher, pays, token_id_N, settings, weak_CH, known, shard)), statistics

    def _heads(self, teacher: TeacherScores) -> tuple[HeadWeights, HeadWeights]:
        """Both heads over the same tokens: all that both know, or the teacher's part of them."""
        whole = head_weights(effective_weight(self), self.bias, self.config)
        if teacher.shard is None:
            return align(whole, teacher.head, self.tokens)
        return whole.part(teacher.shard.start, teacher.shard.stop), teacher.head


class Student(nn.Module):
    """Backbone and selective head. tokens: the tokenizer's size, to which padded vocabularies of unequal size are cut.

    layer_share: depth of the middle layer that an objective reads, or None.
    """

    def __init__(self, model: PreTrainedModel, *, tokens: int, layer_share: float | None = None) -> None:
        super().__init__()
        self.model, self.layer_share = model, layer_share
        model.set_output_embeddings(SelectiveHead(plain_head(model), model.config, tokens=tokens))
        model.train()
        self.repeats = not drops(model)

    @property
    def head(self) -> SelectiveHead:
        """The lm_head, a module of its own."""
        return self.model.get_output_embeddings()

    def forward(
        self,
        batch: Batch,
        teacher: TeacherScores,
        settings: HeadSettings,
        *,
        needs: Iterable[str] = (),
        pays_of: PaysOf | None = None,
        known: Statistics | None = None,
    ) -> tuple[Tensor | None, Statistics]:
        """Statistics of the batch's trained tokens, and with `pays_of` the loss of what they pay (else None).

        known: statistics of the same tokens from a pass before, with the same weights; they save the loss a sweep.
        An empty batch still runs backbone and head, so that every rank's collectives meet.
        """
        hidden_CH, weak_CH = trained_states(backbone(self.model), batch, self.layer_share)
        known = known if self.repeats else None
        return self.head(hidden_CH, weak_CH, batch.token_id_C, teacher, settings, needs, pays_of, known)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole weights under the plain model's names, adapters merged, gathered bucket by bucket; collective.

        Every rank exhausts it. A merged weight W + scaling · B A is a tensor of its own: W keeps every bit. What a
        checkpoint holds beside parameters comes last.
        """
        beside = {f"{name}.weight": adapter for name, adapter in adapters(self.model).items()}
        for bucket in buckets(list(plain_parameters(self.model).items())):
            merged = [beside[name] for name, _ in bucket if name in beside]
            with gathered([p for _, p in bucket] + _matrices(merged)), torch.no_grad():
                for name, parameter in bucket:
                    yield name, beside[name].added_to(parameter) if name in beside else parameter.data
        yield from plain_buffers(self.model).items()

    def export(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, *, ends: list[int] | None = None, writes: bool
    ) -> None:
        """A plain Hugging Face folder, adapters merged, which transformers and vLLM load; collective.

        writes: on one rank.
        ends: ids that end a turn, for its generation config: those at which the rollouts ended that trained it.
        """
        if (asked := self.model.generation_config) is not None:
            asked.eos_token_id = ends or asked.eos_token_id
            self.model.generation_config = writable(asked)
        weights = {name: tensor.detach().cpu().clone() if writes else None for name, tensor in self.weights()}
        if writes:
            self.model.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)

    def export_adapter(self, folder: Path, tokenizer: PreTrainedTokenizerBase, *, writes: bool) -> None:
        """An adapter's folder, which peft loads beside the model that it names; collective, `writes` on one rank."""
        beside, weights = adapters(self.model), {}
        with gathered(_matrices(beside.values())):
            for name, adapter in beside.items() if writes else ():
                for part in ("lora_A", "lora_B"):
                    whole = getattr(adapter, part).detach().cpu().clone()
                    weights[f"base_model.model.{name}.{part}.weight"] = whole
        if writes:
            self.model.peft_config[ADAPTER].save_pretrained(folder)
            save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            tokenizer.save_pretrained(folder)


def _matrices(beside: Iterable[LowRank]) -> list[nn.Parameter]:
    return [matrix for adapter in beside for matrix in (adapter.lora_A, adapter.lora_B)]


def writable(config: GenerationConfig) -> GenerationConfig:
    """The settings, or what of them transformers writes: it loads some files that it would not write.

    Such have an id below 0 (`pad_token_id: -1`), which is left out, name a temperature without `do_sample`, which is
    set then, or hold what is no setting at all: of those the ids that begin, end and fill a text are left.
    """
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = {name: i for name, i in ids.items() if i is not None and (isinstance(i, list) or i >= 0)}
    plain, sampling = deepcopy(config), deepcopy(config)
    for name in ids:
        setattr(plain, name, known.get(name))
        setattr(sampling, name, known.get(name))
    sampling.do_sample = True
    for found in (config, plain, sampling, GenerationConfig(**known)):
        try:
            found.validate(strict=True)
        except ValueError:
            continue
        break
    return found


def drops(model: PreTrainedModel) -> bool:
    """Whether two training passes over the same tokens may differ: dropout, a router's noise or sampled experts."""
    noise = any(value for name, value in vars(text_config(model.config)).items() if name.endswith("jitter_noise"))
    dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return noise or dropout or bool(dropout_rates(model.config)) or model.config.model_type == "phimoe"


def buckets(parameters: list[tuple[str, nn.Parameter]]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Neighbouring parameters together, up to BUCKET_BYTES (a larger one alone)."""
    bucket, size = [], 0
    for name, parameter in parameters:
        bytes_ = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        if bucket and size + bytes_ > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += bytes_
    if bucket:
        yield bucket
