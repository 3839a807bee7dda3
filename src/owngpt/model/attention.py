"""Self-attention: project, norm and rotate, attend, project back. How to attend is handed in as a context."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from owngpt.kernels.attention import causal_attention
from owngpt.kernels.rotary import HeadLayout, Rotation, split_heads
from owngpt.model.config import GPTConfig
from owngpt.model.linear import Linear


class AttentionContext(Protocol):
    """What differs between training, evaluation, prefill and decoding."""

    def positions(self, time: int) -> Tensor:
        """Absolute positions of this call's tokens: (T,) or (B, T) int64."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float) -> Tensor:
        """query (B, T, H, D), key and value (B, T, G, D) → (B, T, H*D) or (B, T, H, D)."""
        ...


class CausalContext:
    """Whole sequences from position 0: training and evaluation.

    ``starts``: (B, T) int32, the first token that each token may see (its document's first), or None.
    ``dropout``: probability on the attention weights.
    """

    def __init__(self, starts: Tensor | None = None, dropout: float = 0.0) -> None:
        self.starts, self.dropout = starts, dropout

    def positions(self, time: int) -> Tensor:
        """0 … T-1; under a document mask they go on across documents, which rotary attention does not notice."""
        return torch.arange(time)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float) -> Tensor:
        """Causal attention over the sequences themselves."""
        return causal_attention(query, key, value, starts=self.starts, window=window, scale=scale, dropout=self.dropout)


class Attention(nn.Module):
    """Multi-head (arXiv 1706.03762) or grouped-query (arXiv 2305.13245) attention."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.window = layer, config.window(layer)
        self.layout = HeadLayout(config.heads, config.key_value_heads, config.head_size)
        self.scale = config.head_size**-0.5 if config.attention_scale is None else config.attention_scale
        self.epsilon = config.norm_epsilon
        self.query_key_value = Linear(config.hidden_size, self.layout.width, config.query_key_value_bias)
        self.output = Linear(config.heads * config.head_size, config.hidden_size, config.attention_output_bias)
        self.query_norm = HeadNorm(config.head_size) if config.query_key_norm else None
        self.key_norm = HeadNorm(config.head_size) if config.query_key_norm else None

    def forward(self, x: Tensor, rotation: Rotation, context: AttentionContext) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        query_weight = self.query_norm.weight if self.query_norm is not None else None
        key_weight = self.key_norm.weight if self.key_norm is not None else None
        query, key, value = split_heads(self.query_key_value(x), self.layout, rotation, query_weight, key_weight, self.epsilon)
        mixed = context.attend(self.layer, query, key, value, window=self.window, scale=self.scale)
        return self.output(mixed.reshape(*x.shape[:2], -1))  # type: ignore[no-any-return]


class HeadNorm(nn.Module):
    """The weight (D,) of the RMSNorm over each query or key head (arXiv 2010.04245); applied where heads are split."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
