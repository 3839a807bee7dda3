"""Several passes are one large batch, in gradients and in what is counted."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_training import CONTEXT, make_module, split_of, text

from owngpt.data.batches import Batch, Batches
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.train.optimizer import OptimizerSettings
from owngpt.train.step import TrainModule


def gradients(batches: list[Batch], dtype: torch.dtype = torch.float32) -> tuple[float, dict[str, torch.Tensor]]:
    """(mean loss, gradients) of a fresh model without dropout."""
    module = make_module(dropout=0.0, dtype=dtype)
    tokens = sum(int((batch.targets >= 0).sum()) for batch in batches)
    loss, sums = module._gradients(batches, 1.0 / tokens)
    return loss, {name: value.clone() for name, value in sums.items()}


def test_accumulated_gradients_are_those_of_one_large_batch() -> None:
    large = Batches(split_of(text(0)), context_length=CONTEXT, batch_size=8, seed=3).next()
    # Unequal numbers of targets: a mean of means would be another gradient.
    large.targets[:3, 5:] = -100
    parts = [Batch(large.inputs[i : i + 2], large.targets[i : i + 2], None, 0.0) for i in range(0, 8, 2)]
    counts = [int((part.targets >= 0).sum()) for part in parts]
    assert len(set(counts)) > 1
    whole_loss, whole = gradients([large])
    loss, accumulated = gradients(parts)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert whole.keys() == accumulated.keys() == dict(make_module().model.named_parameters()).keys()
    for name in whole:
        torch.testing.assert_close(accumulated[name], whole[name], rtol=1e-5, atol=1e-5)
    means = torch.stack([gradients([part])[1]["embedding.weight"] for part in parts]).mean(0)
    assert (means - whole["embedding.weight"]).abs().max() > 1e-4, "the batches must be able to tell the two apart"


def test_gradients_of_bfloat16_weights_are_added_up_in_float32() -> None:
    large = Batches(split_of(text(0)), context_length=CONTEXT, batch_size=8, seed=3).next()
    parts = [Batch(large.inputs[i : i + 2], large.targets[i : i + 2], None, 0.0) for i in range(0, 8, 2)]
    _, exact = gradients([large])
    loss, added = gradients(parts, torch.bfloat16)
    assert loss == pytest.approx(gradients([large])[0], rel=0.01)
    assert {value.dtype for value in added.values()} == {torch.float32}
    assert added.keys() == exact.keys()
    for name, expected in exact.items():
        assert float((added[name] - expected).norm()) < 0.03 * float(expected.norm()), name


def test_a_step_counts_targets_and_not_padding() -> None:
    batch = Batches(split_of(text(0)), context_length=CONTEXT, batch_size=2, seed=3).next()
    batch.targets[0, :10] = -100
    result = make_module().run([batch, batch], 1.0)
    assert result.tokens == 2 * (2 * CONTEXT - 10)
    assert math.isfinite(result.loss) and not result.skipped


def test_a_batch_without_targets_is_skipped() -> None:
    batch = Batches(split_of(text(0)), context_length=CONTEXT, batch_size=2, seed=3).next()
    batch.targets.fill_(-100)
    module = make_module()
    before = module.weights()
    assert module.run([batch], 1.0).skipped
    assert all(torch.equal(before[name], value) for name, value in module.weights().items())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_parameter_learns(kind: str, dtype: torch.dtype) -> None:
    """Experts with their biases, sinks, a head bias and the norms of a sandwich, which no from-scratch model has."""
    config = GPTConfig(
        vocab_size=40, context_length=16, hidden_size=32, layers=2, heads=4, key_value_heads=2, head_size=8,
        intermediate_size=16, activation="swiglu_clamped", experts=3, experts_per_token=2, mlp_bias=True, attention_sinks=True,
        norm_placement="sandwich", norm_weight_offset=1.0, output_head_bias=True, tie_embeddings=False, embedding_scale=5.0,
    )  # fmt: skip
    model = GPT(config, generator=torch.Generator().manual_seed(0))
    before = {name: value.detach().float().clone() for name, value in model.named_parameters()}
    module = TrainModule(model, OptimizerSettings(kind=kind), dtype=dtype)
    ids = torch.randint(40, (4, 17), generator=torch.Generator().manual_seed(1))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), None, 0.0)
    losses = [module.run([batch], 0.3).loss for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert [name for name, value in model.named_parameters() if torch.equal(value.float(), before[name])] == []
