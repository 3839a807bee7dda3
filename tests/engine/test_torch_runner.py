"""Texts computed piece by piece from blocks of keys and values give the logits of whole texts computed at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from owngpt.engine.layout import Part
from owngpt.engine.torch_runner import BLOCK, TorchRunner
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT

LENGTH = 24
NATIVE = GPTConfig(
    vocab_size=41, context_length=LENGTH, hidden_size=32, layers=2, heads=4, key_value_heads=2, head_size=8,
    intermediate_size=48, initializer_range=0.3,
)  # fmt: skip
CONFIGS = {
    "native": NATIVE,
    "learned positions": replace(NATIVE, positions="learned", norm="layernorm", activation="gelu", query_key_norm=False),
    "post-norm": replace(NATIVE, positions="learned", norm_placement="post", key_value_heads=4),
    "windows": replace(NATIVE, attention_windows=(5, 1)),
    "multi-query, partly rotated": replace(NATIVE, key_value_heads=1, rotary_fraction=0.5),
    "unscaled": replace(NATIVE, attention_scale=1.0, tie_embeddings=False),
    "sinks and experts": replace(
        NATIVE, attention_sinks=True, attention_windows=(0, 4), experts=4, experts_per_token=2, activation="swiglu_clamped"
    ),
    "two rotary bases": replace(NATIVE, attention_windows=(0, 4), local_rotary_base=100.0, norm_placement="sandwich"),
}


def make(config: GPTConfig) -> GPT:
    model = GPT(config, generator=torch.Generator().manual_seed(1)).eval()
    for block in model.blocks:
        if config.attention_sinks:
            block.attention.sinks.data = torch.linspace(-1, 1, config.heads)
    return model


def tokens(config: GPTConfig, rows: int = 1) -> torch.Tensor:
    return torch.randint(config.vocab_size, (rows, config.context_length), generator=torch.Generator().manual_seed(2))


def in_pieces(model: GPT, ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """(B, T) computed in pieces of these lengths, the rows side by side. :returns: the logits (B, T, V)."""
    table = -(-ids.shape[1] // BLOCK)
    runner = TorchRunner(model, 1 + len(ids) * table)
    blocks = [range(1 + row * table, 1 + (row + 1) * table) for row in range(len(ids))]
    pieces, before = [], 0
    for length in lengths:
        rows = ids[:, before : before + length].tolist()
        parts = [Part(row, before, own, wants_logits=length) for row, own in zip(rows, blocks, strict=True)]
        pieces.append(runner.run(parts).unflatten(0, (len(ids), length)))
        before += length
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("lengths", [[24], [7, 1, 1, 9, 1, 5], [1] * 24], ids=["whole", "pieces", "one by one"])
def test_logits_in_pieces_are_those_of_the_whole_text(config: GPTConfig, lengths: list[int]) -> None:
    model, ids = make(config), tokens(config, rows=3)
    torch.testing.assert_close(in_pieces(model, ids, lengths), model.logits(ids), rtol=1e-4, atol=1e-4)


def test_a_text_of_several_blocks_is_seen_to_its_beginning() -> None:
    config = replace(NATIVE, context_length=3 * BLOCK + 5, attention_windows=(0, 2 * BLOCK))
    model, ids = make(config), tokens(config)
    actual = in_pieces(model, ids, [BLOCK - 1, 1, 1, BLOCK + 3, BLOCK + 1])
    torch.testing.assert_close(actual, model.logits(ids), rtol=1e-4, atol=1e-4)


def test_rows_of_different_lengths_give_what_each_gives_alone() -> None:
    model, ids = make(NATIVE), tokens(NATIVE, rows=3)
    runner, lengths = TorchRunner(model, 4 * 3), [9, 24, 1]
    blocks = [[4, 7], [2, 9], [5, 6]]
    parts = [Part(row[:length], 0, own) for row, length, own in zip(ids.tolist(), lengths, blocks, strict=True)]
    for row, length, logits in zip(ids, lengths, runner.run(parts), strict=True):
        torch.testing.assert_close(logits, model.logits(row[None, :length])[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_bfloat16_in_pieces_is_bfloat16_at_once(config: GPTConfig) -> None:
    config = replace(config, initializer_range=0.1)
    model, ids = make(config).bfloat16(), tokens(config, rows=2)
    actual, expected = in_pieces(model, ids, [9, 1, 6, 1, 7]), model.logits(ids)
    assert ((actual - expected).norm(dim=-1) < 0.03 * expected.norm(dim=-1)).all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_left_padding_changes_nothing_behind_it(config: GPTConfig) -> None:
    """The model's own forward pass: each row gives the logits that it has alone."""
    model, ids = make(config), tokens(config, rows=3)
    padding = torch.tensor([5, 0, 9])
    whole = model.logits(ids, attention_mask=(torch.arange(LENGTH) >= padding[:, None]).long())
    for row, gap in enumerate(padding.tolist()):
        torch.testing.assert_close(whole[row, gap:], model.logits(ids[row, gap:][None])[0], rtol=1e-4, atol=1e-4)
