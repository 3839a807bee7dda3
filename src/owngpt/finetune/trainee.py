"""The model under training: opened, given an adapter or left whole, under its objective and optimizer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from owngpt.config.finetuning import PREFERENCE_METHODS
from owngpt.data.batches import Batch
from owngpt.finetune.adapter.lora import Lora, attach
from owngpt.finetune.objectives.classification import Classification, head_of
from owngpt.finetune.objectives.preference import Preference, PreferenceSettings
from owngpt.finetune.objectives.supervised import Supervised
from owngpt.finetune.plan import Recipe
from owngpt.formats.base import BaseModel
from owngpt.formats.folder import load_family, open_model
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer
from owngpt.train.step import Objective, TrainModule


def open_base(base: BaseModel, dtype: str, device: torch.device) -> tuple[GPT, Tokenizer]:
    """The base as it computes here, and its tokenizer, if it has one. Nothing is dropped out as its makers did: adapters have a
    dropout of their own."""
    network, tokenizer, _ = open_model(base.path, dtype=getattr(torch, dtype), needs_tokenizer=False)
    network.to(device)
    network.config = replace(network.config, dropout=0.0, attention_dropout=0.0)
    network.dropout.probability = 0.0
    return network, tokenizer


@dataclass(frozen=True)
class Trainee:
    """A network and what trains it."""

    network: GPT
    lora: Lora | None
    module: TrainModule

    @classmethod
    def of(cls, network: GPT, base: BaseModel, recipe: Recipe) -> Trainee:
        """Put the network under training, in place.

        :raises UsageError: the adapter's targets are not matrices of this model.
        """
        lora = None
        if recipe.lora is not None:
            lora = attach(network, recipe.lora, load_family(base.path), seed=recipe.seed, int8=recipe.int8_base)
        else:
            for parameter in network.parameters():
                parameter.requires_grad_(True)
        _prepare_head(network)
        network.checkpointing = recipe.checkpointing
        module = TrainModule(
            network, recipe.optimizer, dtype=None if lora else getattr(torch, recipe.dtype), clip=recipe.clip,
            seed=recipe.seed % 2**32, objective=_objective(recipe, lora),
        )  # fmt: skip
        return cls(network, lora, module)

    @property
    def size(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def serving(self) -> GPT:
        """A plain network that computes what this one learned."""
        return self.network if self.lora is None else self.lora.merged()

    def tokens_per_second(self, batches: Sequence[Batch], seconds: float) -> float:
        """How fast it reads and learns: real passes over these batches in turn, at least two; nothing is changed by it."""
        began, timed, tokens = time.monotonic(), 0.0, 0
        for number in range(1_000):
            batch = batches[number % len(batches)]
            start = time.monotonic()
            self.module.rehearse([batch])
            if number:  # the first one warms everything up
                timed += time.monotonic() - start
                tokens += batch.inputs.numel()
            if number and time.monotonic() - began > seconds:
                break
        return tokens / timed


def _objective(recipe: Recipe, lora: Lora | None) -> Objective:
    if recipe.method in PREFERENCE_METHODS:
        settings = PreferenceSettings(recipe.method, recipe.beta, recipe.label_smoothing)  # type: ignore[arg-type]
        return Preference(settings, reference=lora.off if lora else None)
    return Classification() if recipe.method == "classify" else Supervised()


def _prepare_head(network: GPT) -> None:
    """A head over classes is trained, whatever else is; the one over tokens then is not."""
    head = head_of(network)
    if head is None:
        return
    head.weight.requires_grad_(True)
    for unused in (network.output_head, network.head_bias):
        if unused is not None:
            unused.requires_grad_(False)
