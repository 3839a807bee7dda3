"""Every method goes on after a checkpoint as if nothing had happened: the same bits, in float32 and in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tests.finetune.tiny_tuning import ADAMW, answers_store, make_model, pairs_store, texts_store

from owngpt.families import family_named
from owngpt.finetune.adapter.lora import LoraSettings, attach
from owngpt.finetune.objectives.class_batches import ClassBatches
from owngpt.finetune.objectives.classification import Classification, attach_head
from owngpt.finetune.objectives.preference import Preference, PreferenceSettings
from owngpt.finetune.objectives.preference_batches import PreferenceBatches, held_out_pairs
from owngpt.finetune.objectives.reference import reference_log_probabilities
from owngpt.finetune.objectives.supervised import Supervised
from owngpt.finetune.sequences.batches import ExampleBatches
from owngpt.train.step import TrainModule

METHODS = ("sft", "dpo", "ipo", "orpo", "classify")


@dataclass
class Run:
    """What a process holds."""

    module: TrainModule
    batches: Any

    def steps(self, count: int) -> list[float]:
        return [self.module.run([self.batches.next(), self.batches.next()], 0.7).loss for _ in range(count)]


def begun(folder: Path, method: str, adapter: str | None, dtype: torch.dtype) -> Run:
    """A run from its beginning: everything is made anew from seeds and files."""
    options: dict[str, Any] = {"context_length": 40, "batch_size": 3, "seed": 2}
    model = make_model(dropout=0.1)
    lora = None
    if adapter:
        model = model.to(dtype)
        settings = LoraSettings(rank=4, dropout=0.2, dora=adapter == "dora")
        lora = attach(model, settings, family_named("qwen3"), seed=0)
    objective: Any = Supervised()
    if method == "sft":
        batches: Any = ExampleBatches(answers_store(folder / "data"), **options)
    elif method == "classify":
        attach_head(model, 3, seed=1)
        objective, batches = Classification(), ClassBatches(texts_store(folder / "data"), **options)
    else:
        store = pairs_store(folder / "data")
        objective = Preference(PreferenceSettings(method), reference=lora.off if lora else None)  # type: ignore[arg-type]
        pairs = held_out_pairs(store, context_length=40, batch_size=4)
        batches = PreferenceBatches(store, **options, reference=None if lora else reference_log_probabilities(model, pairs, 10))
    module = TrainModule(model, ADAMW, dtype=None if lora else dtype, seed=5, objective=objective)
    return Run(module, batches)


CASES = [
    *((method, adapter, torch.bfloat16) for method in METHODS for adapter in (None, "lora")),
    *((method, None, torch.float32) for method in METHODS),
    ("sft", "dora", torch.bfloat16),
]


@pytest.mark.parametrize(("method", "adapter", "dtype"), CASES)
def test_a_resumed_run_is_bit_identical(tmp_path: Path, method: str, adapter: str | None, dtype: torch.dtype) -> None:
    def begin(name: str) -> Run:
        return begun(tmp_path / name, method, adapter, dtype)

    straight = begin("straight")
    start = straight.module.weights()
    losses = straight.steps(3)
    state, position = (
        save({name: value.contiguous() for name, value in straight.module.state_dict().items()}),
        straight.batches.state_dict(),
    )
    losses += straight.steps(3)

    resumed = begin("resumed")
    resumed.module.load_state_dict(load(state))
    resumed.batches.load_state_dict(position)
    assert resumed.steps(3) == losses[3:]
    ours, theirs = resumed.module.state_dict(), straight.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(start[name], value) for name, value in straight.module.weights().items())


@pytest.mark.parametrize("make", [answers_store, pairs_store])
def test_a_checkpoint_of_an_adapter_holds_the_adapter_alone(tmp_path: Path, make: Callable[[Path], object]) -> None:
    method = "sft" if make is answers_store else "dpo"
    run = begun(tmp_path, method, "lora", torch.bfloat16)
    names = [name for name in run.module.state_dict() if name.startswith("model.")]
    assert names and all(".lora_" in name for name in names)
    assert all(value.dtype == torch.float32 for name, value in run.module.state_dict().items() if name != "optimizer.step_count")
    frozen = {name: parameter for name, parameter in run.module.model.named_parameters() if ".lora_" not in name}
    before = {name: parameter.detach().clone() for name, parameter in frozen.items()}
    run.steps(2)
    assert all(parameter.dtype == torch.bfloat16 and torch.equal(parameter, before[name]) for name, parameter in frozen.items())
