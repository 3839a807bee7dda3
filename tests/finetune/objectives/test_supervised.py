"""Supervised tuning learns what is learned: the same with masks or without their product, packed or not, in one pass or eight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.finetune.tiny_tuning import ADAMW, answers_store, make_model
from torch import Tensor

from owngpt.data.batches import Batch
from owngpt.finetune.objectives.supervised import Supervised
from owngpt.finetune.sequences.batches import ExampleBatches, held_out_batches, make_batch
from owngpt.model.gpt import GPT
from owngpt.train.step import NextToken, Objective, TrainModule

LEARNED_POSITIONS = {"positions": "learned", "norm": "layer", "activation": "gelu_tanh", "output_head_bias": True}


def gradients(model: GPT, batches: list[Batch], objective: Objective) -> tuple[float, dict[str, Tensor]]:
    """(mean loss, gradients) as a step makes them."""
    module = TrainModule(model, ADAMW, objective=objective)
    count = sum(objective.count(batch) for batch in batches)
    loss, sums = module._gradients(batches, 1.0 / count)
    return loss, {name: value.clone() for name, value in sums.items()}


def assert_equal(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(
            mine[name], theirs[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_leaving_masked_rows_out_changes_nothing(tmp_path: Path) -> None:
    batch = ExampleBatches(answers_store(tmp_path), context_length=32, batch_size=4, seed=1).next()
    assert 0 < (batch.targets >= 0).sum() < batch.targets.numel()
    loss, mine = gradients(make_model(), [batch], Supervised())
    whole_loss, whole = gradients(make_model(), [batch], NextToken())
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert_equal(mine, whole)


@pytest.mark.parametrize("changes", [{}, LEARNED_POSITIONS], ids=["rotary", "learned positions"])
def test_packed_and_unpacked_examples_give_the_same_gradients(tmp_path: Path, changes: dict[str, object]) -> None:
    store = answers_store(tmp_path)
    packed = held_out_batches(store, context_length=40, batch_size=64)
    alone = held_out_batches(store, context_length=40, batch_size=64, pack=False)
    assert len(packed[0].inputs) < len(alone[0].inputs) == len(store)
    mine, theirs = (gradients(make_model(**changes), batches, Supervised()) for batches in (packed, alone))
    assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
    assert_equal(mine[1], theirs[1])


def test_eight_passes_of_one_row_are_one_pass_of_eight(tmp_path: Path) -> None:
    store = answers_store(tmp_path, 40)
    whole = ExampleBatches(store, context_length=40, batch_size=8, seed=3)
    parts = ExampleBatches(store, context_length=40, batch_size=1, seed=3)
    assert whole.rows_per_epoch >= 8
    small = [parts.next() for _ in range(8)]
    assert len({int((batch.targets >= 0).sum()) for batch in small}) > 1, "a mean of means must be another gradient"
    mine, theirs = gradients(make_model(), small, Supervised()), gradients(make_model(), [whole.next()], Supervised())
    assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
    assert_equal(mine[1], theirs[1])


def test_a_pass_without_anything_learned_adds_nothing(tmp_path: Path) -> None:
    store = answers_store(tmp_path)
    batch = make_batch([[store.example(0)]], 0.0)
    empty = Batch(batch.inputs, torch.full_like(batch.targets, -100), batch.starts, 0.0)
    module = TrainModule(make_model(), ADAMW, objective=Supervised())
    alone = module.run([batch], 1.0)
    both = TrainModule(make_model(), ADAMW, objective=Supervised()).run([batch, empty], 1.0)
    assert (both.loss, both.tokens) == (pytest.approx(alone.loss, rel=1e-6), alone.tokens)
    assert both.gradient_norm == pytest.approx(alone.gradient_norm, rel=1e-5)
    assert TrainModule(make_model(), ADAMW, objective=Supervised()).run([empty], 1.0).skipped
