"""Attention that remembers: keys and values of earlier tokens are kept, so that each token is computed once.

Shape letters: B rows (sequences), T tokens of this call, S tokens in the cache, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from owngpt.errors import UsageError
from owngpt.kernels.attention import attention_with_sinks
from owngpt.model.attention import left_padding
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT

BLOCK = 256
"""Buffers grow in multiples of this many tokens."""
PREFILL_CHUNK = 1024
"""Longest call into the model in tokens: bounds the activations of a long prompt."""


class CachedContext:
    """The attention context of generation: appends each call's keys and values, attends to all that came before.

    All rows have the same length: they begin as one prompt (``extend`` with one row) and are multiplied, reordered or
    dropped by :meth:`select`; or they are padded on the left to one length, which ``attention_mask`` says. Buffers are
    allocated at the first call with its dtype and device, grow by doubling and never exceed ``config.context_length`` tokens.
    """

    def __init__(self, config: GPTConfig, attention_mask: Tensor | None = None) -> None:
        """
        :param attention_mask: (B, T), 0 for the padding before the first tokens of each row and 1 from there on.
        :raises UsageError: padding comes after a token.
        """
        self._config = config
        self._padding: Tensor | None = None  # (B,) int64
        if attention_mask is not None and not bool(attention_mask.bool().all()):
            self._padding = left_padding(attention_mask)
            if not bool(attention_mask[:, -1].bool().all()):
                raise UsageError("attention_mask ends in padding; a text that goes on is padded on the left")
        self._keys: list[Tensor] = []  # per layer (B, G, capacity, D)
        self._values: list[Tensor] = []
        self.length = 0
        """Tokens stored for every row."""

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self._config.context_length - self.length

    def extend(self, model: GPT, token_ids: Tensor) -> Tensor:
        """Run the model over the next tokens of every row and remember them.

        :param token_ids: (B, T) int64.
        :returns: (B, V) float32 logits after the last token only; no others are computed.
        :raises UsageError: when T is more than :attr:`room`.
        """
        if token_ids.shape[1] > self.room:
            raise UsageError(
                f"{self.length + token_ids.shape[1]} tokens do not fit the model's context of "
                f"{self._config.context_length}; give a shorter prompt or use a model with a longer context"
            )
        was_training = model.training
        if was_training:  # a sample in the middle of a training run: no dropout here
            model.eval()
        with torch.inference_mode():
            for chunk in token_ids.split(self._chunk(token_ids.shape[1]), dim=1):
                hidden = model(chunk, self)  # (B, t, C)
                self.length += chunk.shape[1]
            logits = model.head(hidden[:, -1])
        if was_training:
            model.train()
        return logits

    def _chunk(self, length: int) -> int:
        """Tokens for one call: a prompt in parts, but whole where its length decides how all of it is rotated."""
        scaling = self._config.rotary_scaling
        return length if scaling is not None and scaling.kind == "dynamic" else PREFILL_CHUNK

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in the given order; a row may be named several times.

        :param rows: (N,) int64 indices into the present rows.
        """
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                new = old.new_empty(len(rows), *old.shape[1:])
                new[:, :, : self.length] = old[:, :, : self.length].index_select(0, rows.to(old.device))
                buffers[layer] = new
        if self._padding is not None:
            self._padding = self._padding[rows.to(self._padding.device)]

    def positions(self, length: int) -> Tensor:
        """(T,) int64: the absolute positions of the next ``length`` tokens, the same for every row; (B, T) behind padding."""
        index = torch.arange(self.length, self.length + length)
        if self._padding is None:
            return index
        return (index.to(self._padding.device) - self._padding[:, None]).clamp(min=0)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float, sinks: Tensor | None = None
    ) -> Tensor:
        """Scaled dot-product attention (arXiv 1706.03762, section 3.2.1) over the cache and this call's own tokens.

        :param query: (B, T, H, D); ``key`` and ``value``: (B, T, G, D), of the same dtype.
        :param window: latest tokens, itself included, that a token sees; 0 for all.
        :param scale: factor on the query-key products.
        :param sinks: (H,) logits that join each softmax's denominator, or None.
        :returns: (B, T, H, D), with sinks (B, T, H*D).
        """
        length = query.shape[1]
        end = self.length + length
        self._reserve(layer, key, end)
        self._keys[layer][:, :, self.length : end] = key.transpose(1, 2)
        self._values[layer][:, :, self.length : end] = value.transpose(1, 2)
        first = max(0, self.length + 1 - window) if window else 0  # oldest key that any of these tokens sees
        keys, values = self._keys[layer][:, :, first:end], self._values[layer][:, :, first:end]
        if sinks is not None:
            visible = self._visible(first, end, window).to(query.device)
            return attention_with_sinks(query, keys, values, sinks, visible=visible, scale=scale)
        if length == 1:
            mask = None if self._padding is None else self._visible(first, end, window).to(query.device)
            return _attend_one(query, keys, values, scale, mask)
        return self._attend_many(query, keys, values, first, window, scale)

    def _attend_many(self, query: Tensor, keys: Tensor, values: Tensor, first: int, window: int, scale: float) -> Tensor:
        length, end = query.shape[1], first + keys.shape[2]
        plain = self.length == 0 and self._padding is None and (window == 0 or window >= length)
        mask = None if plain else self._visible(first, end, window).to(query.device)
        out = scaled_dot_product_attention(
            query.transpose(1, 2), keys, values, attn_mask=mask, is_causal=plain, scale=scale, enable_gqa=True
        )  # (B, H, T, D)
        return out.transpose(1, 2)

    def _visible(self, first: int, end: int, window: int) -> Tensor:
        """(1 or B, 1, T, S) bool: which keys, ``first`` to ``end`` - 1, each token of this call sees."""
        queries, keys = torch.arange(self.length, end), torch.arange(first, end)
        distance = queries[:, None] - keys
        visible = (distance >= 0) & (distance < window) if window else distance >= 0
        if self._padding is None:
            return visible[None, None]
        tokens = keys >= self._padding.to(keys.device)[:, None, None]  # (B, 1, S)
        return ((visible & tokens) | (distance == 0))[:, None]  # padding sees itself: a softmax over nothing is not a number

    def _reserve(self, layer: int, key: Tensor, needed: int) -> None:
        """Make the buffers of one layer hold ``needed`` tokens."""
        rows, _, groups, size = key.shape
        if layer == len(self._keys):
            self._keys.append(key.new_empty(rows, groups, 0, size))
            self._values.append(key.new_empty(rows, groups, 0, size))
        capacity = self._keys[layer].shape[2]
        if needed <= capacity:
            return
        blocks = -(-max(needed, 2 * capacity) // BLOCK)
        grown = min(blocks * BLOCK, self._config.context_length)
        for buffers in (self._keys, self._values):
            new = key.new_empty(rows, groups, grown, size)
            new[:, :, : self.length] = buffers[layer][:, :, : self.length]
            buffers[layer] = new


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, scale: float, visible: Tensor | None) -> Tensor:
    """One new token sees every key, or those that ``visible`` (B, 1, 1, S) has. The H/G query heads that share a key head go
    in as rows, so no key is repeated."""
    rows, _, heads, size = query.shape
    groups = keys.shape[1]
    grouped = query.reshape(rows, groups, heads // groups, size)
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=visible, scale=scale)
    return out.reshape(rows, 1, heads, size)
