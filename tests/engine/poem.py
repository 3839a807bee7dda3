"""A tiny model that has learned one Chinese poem by heart: real weights whose output is known."""

from __future__ import annotations

from functools import cache

import torch
from tests.engine.plain import plain

from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

POEM = "春眠不觉晓，处处闻啼鸟。Then: 夜来风雨声 — 花落知多少？ 🐦"
CONTEXT_LENGTH = 128
STEPS = 80


@cache
def tokenizer() -> Tokenizer:
    """Bytes are tokens, so every Chinese character crosses token borders."""
    return train_tokenizer([], kind="byte")


@cache
def plain_tokenizer() -> Tokenizer:
    """As many tokens, each of them text by itself."""
    return plain(tokenizer())


@cache
def model() -> GPT:
    """Trained until every token of the poem, and the end of text after it, is all but certain."""
    config = GPTConfig(
        vocab_size=tokenizer().vocab_size + 8,  # padded, as real embeddings are
        context_length=CONTEXT_LENGTH,
        hidden_size=64,
        layers=2,
        heads=4,
        key_value_heads=2,
        head_size=16,
        intermediate_size=128,
        attention_windows=(16, 0),
        initializer_range=0.1,
    )
    network = GPT(config, generator=torch.Generator().manual_seed(3))
    end = tokenizer().end_of_text_id
    ids = [end, *tokenizer().encode(POEM), end]
    inputs = torch.tensor([ids[:-1], [*ids[1:-1], end]])  # with and without the token that begins a text
    targets = torch.tensor([ids[1:], [-100, *ids[3:], -100]])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / STEPS)
        loss = network.loss(inputs, targets, scale=1 / int((targets >= 0).sum()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01, "the poem was not learned"
    return network.eval()
