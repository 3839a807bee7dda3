"""The decoder-only Transformer, from GPT-1 to Qwen3: one forward pass for training, evaluation, inspection and inference.

Shape letters: B batch, T time (tokens), C hidden size, H query heads, G key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from owngpt.errors import UsageError
from owngpt.kernels.dropout import Dropout, seed_of
from owngpt.kernels.loss import linear_cross_entropy
from owngpt.kernels.rotary import Rotation
from owngpt.model.attention import Attention, AttentionContext, CausalContext
from owngpt.model.config import GPTConfig
from owngpt.model.linear import Linear
from owngpt.model.mlp import MLP
from owngpt.model.norm import make_norm
from owngpt.model.rotary import rotary_tables


class DropoutSource:
    """Hands out one :class:`Dropout` after another; the trainer sets ``seed`` before each pass."""

    def __init__(self, probability: float) -> None:
        self.probability, self.seed, self.uses = probability, 0, 0

    def restart(self, seed: int) -> None:
        """Begin a pass: the same seed drops the same elements."""
        self.seed, self.uses = seed, 0

    def next(self, training: bool) -> Dropout | None:
        """Dropout for the next use, None outside of training."""
        if not training or not self.probability:
            return None
        self.uses += 1
        return Dropout(self.probability, seed_of(self.seed, self.uses))


class Block(nn.Module):
    """One layer. The residual stream travels as (x, update): the pending update is added where the next norm reads the sum."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.post_norm = config.norm_placement == "post"

    def forward(
        self, x: Tensor, update: Tensor | None, rotation: Rotation, context: AttentionContext, dropout: DropoutSource
    ) -> tuple[Tensor, Tensor | None]:
        """x, update: (B, T, C); returns the next pair."""
        if self.post_norm:
            return self._post(x, rotation, context, dropout), None
        x, normed = self.attention_norm(x, update, dropout.next(self.training) if update is not None else None)
        x, normed = self.mlp_norm(x, self.attention(normed, rotation, context), dropout.next(self.training))
        return x, self.mlp(normed)

    def _post(self, x: Tensor, rotation: Rotation, context: AttentionContext, dropout: DropoutSource) -> Tensor:
        """GPT-1: the norm follows the sum."""
        _, x = self.attention_norm(x, self.attention(x, rotation, context), dropout.next(self.training))
        _, x = self.mlp_norm(x, self.mlp(x), dropout.next(self.training))
        return x


class GPT(nn.Module):
    """A causal language model over token ids.

    Matrices start from N(0, initializer_range), those that write to the residual stream scaled by 1/sqrt(2L) (GPT-2), an
    untied head scaled by 1/20, so that every token starts out equally likely; all drawn from ``generator`` alone.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: GPTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = (
            nn.Embedding(config.context_length, config.hidden_size) if config.positions == "learned" else None
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = make_norm(config) if config.norm_placement == "pre" else None
        self.output_head = None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size, False)
        self.dropout = DropoutSource(config.dropout)
        size = config.rotary_size if config.positions == "rotary" else 0
        cosines, sines = rotary_tables(config.context_length, size, config.rotary_base)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        self._initialise(generator)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GPT:
        """Move or convert the parameters; the rotary tables go along but stay float32, as the kernels read them."""
        super()._apply(fn, recurse)
        tables = rotary_tables(self.cosines.shape[0], 2 * self.cosines.shape[1], self.config.rotary_base)
        self.cosines, self.sines = (table.to(self.cosines.device) for table in tables)
        return self

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        deviation = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            scale = 1 / math.sqrt(2 * self.config.layers) if name.endswith(("output.weight", "down.weight")) else 1.0
            scale = 1 / 20 if name == "output_head.weight" else scale
            parameter.normal_(0.0, deviation * scale, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        """(V, C): the embedding itself when tied (arXiv 1608.05859)."""
        return self.embedding.weight if self.output_head is None else self.output_head.weight

    def forward(self, token_ids: Tensor, context: AttentionContext | None = None) -> Tensor:
        """(B, T) int64 → hidden states (B, T, C) after the final norm.

        Raises UsageError when a position lies beyond the context length.
        """
        context = context or CausalContext(dropout=self.config.attention_dropout if self.training else 0.0)
        positions = self._checked(context.positions(token_ids.shape[1]).to(token_ids.device))
        rotation = Rotation(self.cosines, self.sines, positions.expand(token_ids.shape).reshape(-1).to(torch.int32).contiguous())
        x = functional.embedding(token_ids, self.embedding.weight)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        dropout = self.dropout.next(self.training)
        x = dropout(x) if dropout else x
        update = None
        for block in self.blocks:
            x, update = block(x, update, rotation, context, self.dropout)
        if self.final_norm is None:
            return x
        return self.final_norm(x, update, self.dropout.next(self.training))[1]  # type: ignore[no-any-return]

    def _checked(self, positions: Tensor) -> Tensor:
        last = int(positions.max()) if positions.device.type == "cpu" else -1
        if last >= self.config.context_length:
            limit = self.config.context_length
            raise UsageError(
                f"position {last} lies beyond the model's context_length {limit}; shorten the text to {limit} tokens"
            )
        return positions

    def head(self, hidden: Tensor) -> Tensor:
        """(..., C) → logits (..., V) float32."""
        if self.output_head is not None:
            return self.output_head(hidden).float()  # type: ignore[no-any-return]
        return functional.linear(hidden, self.embedding.weight).float()

    def logits(self, token_ids: Tensor, context: AttentionContext | None = None) -> Tensor:
        """(B, T) int64 → (B, T, V) float32."""
        return self.head(self(token_ids, context))

    def loss(self, token_ids: Tensor, targets: Tensor, context: AttentionContext | None = None, *, scale: float = 1.0) -> Tensor:
        """scale * sum of the cross-entropies, in nats, of targets (B, T) int64; negative targets do not count. Float32 scalar."""
        hidden = self(token_ids, context)
        return linear_cross_entropy(hidden.flatten(0, 1), self.head_weight, targets.flatten(), scale=scale)
