"""Self-attention: project, norm and rotate, attend, project back. How to attend is handed in as a context."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from owngpt.errors import UsageError
from owngpt.kernels.attention import attention_with_sinks, causal_attention, visible_keys
from owngpt.kernels.rotary import HeadLayout, Rotation, split_heads
from owngpt.model.config import GPTConfig
from owngpt.model.linear import Linear
from owngpt.model.norm import HeadNorm


class AttentionContext(Protocol):
    """What differs between training, evaluation, prefill and decoding."""

    def positions(self, time: int) -> Tensor:
        """Absolute positions of this call's tokens: (T,) or (B, T) int64."""
        ...

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float, sinks: Tensor | None = None
    ) -> Tensor:
        """query (B, T, H, D), key and value (B, T, G, D) → (B, T, H*D) or (B, T, H, D) of the tokens that go on.

        ``sinks``: (H,) logits that join each softmax's denominator, or None.
        """
        ...

    def going_on(self, layer: int, x: Tensor) -> Tensor:
        """x (B, T, C) → those of its tokens that this layer computes after its attention, in their order.

        All, but in the last layer: there a context may drop tokens of which only keys and values are of use.
        """
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

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float, sinks: Tensor | None = None
    ) -> Tensor:
        """Causal attention over the sequences themselves."""
        if sinks is None:
            return causal_attention(query, key, value, starts=self.starts, window=window, scale=scale, dropout=self.dropout)
        visible = visible_keys(query.shape[1], self.starts, window, query.device)
        return attention_with_sinks(
            query, key.transpose(1, 2), value.transpose(1, 2), sinks, visible=visible, scale=scale, dropout=self.dropout
        )

    def going_on(self, layer: int, x: Tensor) -> Tensor:
        """All tokens: each has a target."""
        return x


class PackedContext(CausalContext):
    """Several sequences side by side in a row, each as if it were alone: it sees nothing of the others, and its positions
    begin at 0."""

    def __init__(self, starts: Tensor, dropout: float = 0.0) -> None:
        """:param starts: (B, T) int32, where in the row the sequence of each token begins."""
        super().__init__(starts, dropout)

    def positions(self, time: int) -> Tensor:
        """(B, T): each token's place in its own sequence."""
        assert self.starts is not None
        return torch.arange(time, device=self.starts.device)[None] - self.starts

    def lengths(self) -> Tensor:
        """(B, T) int64: how long the sequence of each token is."""
        assert self.starts is not None
        starts = self.starts.long()
        longest = torch.zeros_like(starts).scatter_reduce(1, starts, self.positions(starts.shape[1]) + 1, "amax")
        return longest.gather(1, starts)


class PaddedContext(CausalContext):
    """Sequences that were filled up to one length, usually on the left: padding is seen by no token and has no position."""

    def __init__(self, attention_mask: Tensor, dropout: float = 0.0) -> None:
        """
        :param attention_mask: (B, T), 1 for a token and 0 for padding; the tokens of a row lie side by side.
        :raises UsageError: a row has padding between its tokens, or no token at all.
        """
        padding = left_padding(attention_mask)
        time = torch.arange(attention_mask.shape[1], device=padding.device)
        # Padding sees itself: a softmax over nothing would be not-a-number and spoil the gradients of all.
        super().__init__(torch.minimum(padding[:, None], time[None]).to(torch.int32), dropout)
        self._positions = (time[None] - padding[:, None]).clamp(min=0)

    def positions(self, time: int) -> Tensor:
        """(B, T): tokens count from 0 behind the padding, as the generate() of transformers counts them."""
        return self._positions


def left_padding(attention_mask: Tensor) -> Tensor:
    """(B, T) of ones and zeros → (B,) int64, how many zeros come before the ones.

    :raises UsageError: a row has zeros between its ones, or no one at all.
    """
    mask = attention_mask.bool()
    if mask.dim() != 2 or not bool(mask.any(1).all()):
        raise UsageError(f"attention_mask is {tuple(mask.shape)}; it must be (B, T) with at least one token in each row")
    padding = mask.int().argmax(1)
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    holes = (last - padding + 1 != mask.sum(1)).nonzero().flatten().tolist()
    if holes:
        raise UsageError(f"attention_mask has padding between the tokens of row {holes[0]}; pad before them or after them only")
    return padding


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
        self.query_norm = HeadNorm(config) if config.query_key_norm else None
        self.key_norm = HeadNorm(config) if config.query_key_norm else None
        self.sinks = nn.Parameter(torch.zeros(config.heads)) if config.attention_sinks else None

    def forward(self, x: Tensor, rotation: Rotation, context: AttentionContext) -> Tensor:
        """(B, T, C) → (B, T, C), of the tokens that go on (:meth:`AttentionContext.going_on`)"""
        query_weight = self.query_norm.factor if self.query_norm is not None else None
        key_weight = self.key_norm.factor if self.key_norm is not None else None
        query, key, value = split_heads(self.query_key_value(x), self.layout, rotation, query_weight, key_weight, self.epsilon)
        mixed = context.attend(self.layer, query, key, value, window=self.window, scale=self.scale, sinks=self.sinks)
        return self.output(mixed.reshape(*mixed.shape[:2], -1))  # type: ignore[no-any-return]
