"""Decoding from the cache gives the logits of the whole sequence computed at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from owngpt.engine.cache import BLOCK, CachedContext
from owngpt.errors import UsageError
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT

NATIVE = GPTConfig(
    vocab_size=41, context_length=24, hidden_size=32, layers=2, heads=4, key_value_heads=2, head_size=8, intermediate_size=48,
    initializer_range=0.3,
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


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("lengths", [[24], [7, 1, 1, 9, 1, 5], [1] * 24], ids=["prefill", "chunks", "one by one"])
def test_logits_from_the_cache_are_those_of_the_whole_sequence(config: GPTConfig, lengths: list[int]) -> None:
    model, ids = make(config), tokens(config, rows=3)
    expected = model.logits(ids)
    context = CachedContext(config)
    for chunk in ids.split(lengths, dim=1):
        logits = context.extend(model, chunk)
        torch.testing.assert_close(logits, expected[:, context.length - 1], rtol=1e-4, atol=1e-4)


def test_cache_grows_past_its_first_block() -> None:
    config = replace(NATIVE, context_length=2 * BLOCK + 40, attention_windows=(0, 300))
    model, ids = make(config), tokens(config)
    expected = model.logits(ids)
    context = CachedContext(config)
    for chunk in ids.split([BLOCK - 1, 1, 1, BLOCK + 3, 36], dim=1):
        torch.testing.assert_close(context.extend(model, chunk), expected[:, context.length - 1], rtol=1e-4, atol=1e-4)
    assert context.room == 0


def test_a_long_prompt_in_chunks_is_the_same_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make(NATIVE), tokens(NATIVE)
    whole = CachedContext(NATIVE).extend(model, ids)
    monkeypatch.setattr("owngpt.engine.cache.PREFILL_CHUNK", 5)
    torch.testing.assert_close(CachedContext(NATIVE).extend(model, ids), whole, rtol=1e-4, atol=1e-4)


def test_selected_rows_go_on_from_their_own_history() -> None:
    model, ids = make(NATIVE), tokens(NATIVE, rows=3)
    context = CachedContext(NATIVE)
    context.extend(model, ids[:, :10])
    rows = torch.tensor([2, 0, 2, 2])
    context.select(rows)
    expected = model.logits(ids[rows, :11])[:, -1]
    torch.testing.assert_close(context.extend(model, ids[rows, 10:11]), expected, rtol=1e-4, atol=1e-4)


def test_more_tokens_than_the_context_holds_are_refused() -> None:
    model, ids = make(NATIVE), tokens(NATIVE)
    context = CachedContext(NATIVE)
    context.extend(model, ids[:, :20])
    with pytest.raises(UsageError, match=r"25 tokens do not fit the model's context of 24"):
        context.extend(model, ids[:, :5])


def test_a_training_model_decodes_without_dropout_and_goes_on_training() -> None:
    config = replace(NATIVE, dropout=0.5)
    model, ids = make(config), tokens(config)
    expected = model.logits(ids)[:, -1]
    model.train()
    torch.testing.assert_close(CachedContext(config).extend(model, ids), expected, rtol=1e-4, atol=1e-4)
    assert model.training


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_bfloat16_decodes_as_it_computes_at_once(config: GPTConfig) -> None:
    """The compiled kernels, too, turn each token by its absolute position."""
    config = replace(config, initializer_range=0.1)
    model, ids = make(config).bfloat16(), tokens(config, rows=2)
    expected = model.logits(ids)
    context = CachedContext(config)
    for chunk in ids.split([9, 1, 6, 1, 7], dim=1):
        logits, wanted = context.extend(model, chunk), expected[:, context.length - 1]
        assert (logits - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_left_padding_changes_nothing_behind_it(config: GPTConfig) -> None:
    """Rows of different lengths in one batch: each gives the logits that it has alone, also after rows were reordered."""
    model, ids = make(config), tokens(config, rows=3)[:, :16]
    padding = torch.tensor([5, 0, 9])
    mask = (torch.arange(16) >= padding[:, None]).long()
    alone = [model.logits(row[gap:][None])[0] for row, gap in zip(ids, padding.tolist(), strict=True)]
    whole = model.logits(ids, attention_mask=mask)
    for row, gap in enumerate(padding.tolist()):
        torch.testing.assert_close(whole[row, gap:], alone[row], rtol=1e-4, atol=1e-4)
    context = CachedContext(config, mask[:, :12])
    torch.testing.assert_close(context.extend(model, ids[:, :12]), whole[:, 11], rtol=1e-4, atol=1e-4)
    context.select(torch.tensor([2, 1, 0]))
    for step in range(12, 16):
        logits = context.extend(model, ids[[2, 1, 0], step][:, None])
        torch.testing.assert_close(logits, whole[[2, 1, 0], step], rtol=1e-4, atol=1e-4)


def test_a_mask_with_holes_is_refused() -> None:
    with pytest.raises(UsageError, match="between the tokens of row 1"):
        CachedContext(NATIVE, torch.tensor([[0, 1, 1, 1], [1, 0, 1, 1]]))
    with pytest.raises(UsageError, match="at least one token in each row"):
        CachedContext(NATIVE, torch.tensor([[0, 0], [1, 1]]))
    with pytest.raises(UsageError, match="ends in padding"):
        CachedContext(NATIVE, torch.tensor([[1, 1, 0], [1, 1, 1]]))
