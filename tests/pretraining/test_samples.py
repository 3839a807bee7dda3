"""Samples begin where a character ends, whatever the tokenizer."""

from __future__ import annotations

import pytest
import torch

from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.pretraining.samples import write_samples
from owngpt.text.training import train_tokenizer


@pytest.mark.parametrize("length", range(3, 12))
def test_a_prompt_cut_inside_a_character_is_shortened_to_whole_ones(length: int) -> None:
    tokenizer = train_tokenizer([], kind="byte")
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context_length=32, hidden_size=32, layers=1, heads=2, key_value_heads=2, head_size=16,
        intermediate_size=64,
    )  # fmt: skip
    network = GPT(config, generator=torch.Generator().manual_seed(0)).eval()
    (sample,) = write_samples(network, tokenizer, [tokenizer.encode("猫坐在垫子上")[:length]], seed=1)
    assert sample["prompt"] == "猫坐在垫子上"[: length // 3]
