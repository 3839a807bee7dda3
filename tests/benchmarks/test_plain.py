"""What OwnGPT's speed is compared with computes the same thing."""

from __future__ import annotations

import pytest
import torch

from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.train.presets import native, preset
from owngpt.train.throughput import random_batch

SHAPES = {
    "native": native(97, 32, 64, 2),
    "gpt2": preset("gpt2", vocab_size=97, context_length=32, hidden_size=64, layers=2, heads=2, key_value_heads=2, head_size=32),
}


@pytest.mark.parametrize("name", SHAPES)
def test_plain_model_has_the_loss_and_gradients_of_ours(name: str) -> None:
    from plain import PlainGPT

    config: GPTConfig = SHAPES[name]
    ours = GPT(config, generator=torch.Generator().manual_seed(1))
    theirs = PlainGPT(config)
    theirs.load_state_dict(ours.state_dict())
    batch = random_batch(config, 3)

    expected = theirs(batch.inputs, batch.targets)
    total = ours.loss(batch.inputs, batch.targets, scale=1 / batch.targets.numel())
    expected.backward()
    total.backward()

    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    for key, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(ours.get_parameter(key).grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=key)


def test_plain_training_learns() -> None:
    from plain import PlainTrainer

    config = SHAPES["native"]
    trainer = PlainTrainer(config, GPT(config, generator=torch.Generator().manual_seed(1)).state_dict())
    batch = random_batch(config, 4)
    losses = [trainer.step(batch.inputs, batch.targets) for _ in range(12)]

    assert losses[-1] < losses[0] - 0.1
