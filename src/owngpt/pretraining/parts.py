"""What a plan turns into, the same on every rank: the model with its optimizer, and the batches."""

from __future__ import annotations

from pathlib import Path

import torch

from owngpt.config.run_record import RunRecord
from owngpt.data.batches import Batch, Batches, validation_batches
from owngpt.data.shards import PreparedData
from owngpt.formats.base import BaseModel
from owngpt.model.gpt import GPT
from owngpt.train.parallel import Ranks
from owngpt.train.planner import Plan
from owngpt.train.step import TrainModule

VALIDATION_TOKENS = 65_536
"""Held-out tokens looked at during the run, at most."""
DROPOUT_STRIDE = 7919
"""Between the seeds of the ranks' dropout, so that each drops other elements."""


def device_of(ranks: Ranks | None) -> torch.device:
    """Where this process computes: the first GPU, or the rank's own."""
    if ranks is not None:
        return ranks.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_module(plan: Plan, device: torch.device, ranks: Ranks | None, base: BaseModel | None = None) -> TrainModule:
    """A new model with the plan's seed, or a copy of the one that the run goes on from, under its optimizer."""
    model = base.start(plan.model) if base else GPT(plan.model, generator=torch.Generator().manual_seed(plan.seed))
    model.to(device)
    seed = plan.seed + DROPOUT_STRIDE * (ranks.rank if ranks else 0)
    return TrainModule(model, plan.optimizer, dtype=getattr(torch, plan.dtype), clip=plan.clip, seed=seed, reducer=ranks)


def build_batches(plan: Plan, prepared: PreparedData, ranks: Ranks | None) -> Batches:
    """This rank's share of the training text."""
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    return Batches(
        prepared.train, context_length=plan.model.context_length, batch_size=plan.batch_size, seed=plan.seed % 2**32,
        document_mask=plan.document_mask, rank=rank, world_size=size,
    )  # fmt: skip


def held_out_batches(plan: Plan, prepared: PreparedData) -> list[Batch]:
    """What is looked at during the run."""
    return validation_batches(
        prepared.validation, context_length=plan.model.context_length, batch_size=plan.batch_size,
        document_mask=plan.document_mask, max_tokens=VALIDATION_TOKENS,
    )  # fmt: skip


def plan_of(record: RunRecord, run_folder: Path) -> Plan:
    """The plan in run.yaml.

    :raises CheckpointError: it is not one that this version reads.
    """
    return record.read_plan(Plan.from_dict, run_folder)
