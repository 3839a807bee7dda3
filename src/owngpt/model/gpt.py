"""The decoder-only Transformer, from GPT-1 to Qwen3: one forward pass for training, evaluation, inspection and inference.

Shape letters: B batch, T time (tokens), C hidden size, H query heads, G key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from owngpt.errors import UsageError
from owngpt.kernels import tape
from owngpt.kernels.add import add
from owngpt.kernels.dropout import Dropout, seed_of
from owngpt.kernels.frozen import FrozenWeight
from owngpt.kernels.loss import linear_cross_entropy
from owngpt.kernels.remake import suspended
from owngpt.kernels.rotary import Rotation
from owngpt.model.attention import Attention, AttentionContext, CausalContext, PackedContext, PaddedContext
from owngpt.model.config import GPTConfig
from owngpt.model.embedding import Embedding
from owngpt.model.experts import Experts
from owngpt.model.linear import Linear
from owngpt.model.mlp import MLP
from owngpt.model.norm import make_norm
from owngpt.model.rotary import RotaryTables


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
        self.mlp_norm = None if config.shared_norm else make_norm(config)
        self.mlp = Experts(config) if config.experts else MLP(config)
        sandwich = config.norm_placement == "sandwich"
        self.attention_output_norm = make_norm(config) if sandwich else None
        self.mlp_output_norm = make_norm(config) if sandwich else None
        self.post_norm, self.parallel = config.norm_placement == "post", config.parallel_residual

    def forward(
        self, x: Tensor, update: Tensor | None, rotation: Rotation, context: AttentionContext, dropout: DropoutSource
    ) -> tuple[Tensor, Tensor | None]:
        """x, update: (B, T, C); returns the next pair, of the tokens that go on."""
        if self.post_norm:
            return self._post(x, rotation, context, dropout), None
        x, normed = self.attention_norm(x, update, dropout.next(self.training) if update is not None else None)
        if self.parallel:
            return self._parallel(x, normed, rotation, context, dropout), None
        assert self.mlp_norm is not None
        attended, x = self._attended(normed, rotation, context), context.going_on(self.attention.layer, x)
        x, normed = self.mlp_norm(x, attended, dropout.next(self.training))
        update = self.mlp(normed)
        return x, update if self.mlp_output_norm is None else self.mlp_output_norm(update)[1]

    def _attended(self, normed: Tensor, rotation: Rotation, context: AttentionContext) -> Tensor:
        update: Tensor = self.attention(normed, rotation, context)
        return update if self.attention_output_norm is None else self.attention_output_norm(update)[1]

    def _parallel(
        self, x: Tensor, normed: Tensor, rotation: Rotation, context: AttentionContext, dropout: DropoutSource
    ) -> Tensor:
        """GPT-J and GPT-NeoX: neither sub-layer sees the other's output."""
        attended, x = self.attention(normed, rotation, context), context.going_on(self.attention.layer, x)
        own = context.going_on(self.attention.layer, normed) if self.mlp_norm is None else self.mlp_norm(x)[1]
        for update in (attended, self.mlp(own)):
            drop = dropout.next(self.training)
            x = add(x, drop(update) if drop else update)
        return x

    def _post(self, x: Tensor, rotation: Rotation, context: AttentionContext, dropout: DropoutSource) -> Tensor:
        """GPT-1: the norm follows the sum."""
        assert self.mlp_norm is not None
        attended, x = self.attention(x, rotation, context), context.going_on(self.attention.layer, x)
        _, x = self.attention_norm(x, attended, dropout.next(self.training))
        _, x = self.mlp_norm(x, self.mlp(x), dropout.next(self.training))
        return x


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Inside, the module is in training mode, or in evaluation mode."""
    before = module.training
    if before == training:
        yield
        return
    module.train(training)
    try:
        yield
    finally:
        module.train(before)


class GPT(nn.Module):
    """A causal language model over token ids.

    Matrices start from N(0, initializer_range), those that write to the residual stream scaled by 1/sqrt(2L) (GPT-2), an
    untied head scaled by 1/20, so that every token starts out equally likely; all drawn from ``generator`` alone.
    """

    def __init__(self, config: GPTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size, config.embedding_scale)
        learned = config.positions == "learned"
        self.position_embedding = Embedding(config.context_length, config.hidden_size) if learned else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = None if config.norm_placement == "post" else make_norm(config)
        self.output_head = None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size, False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.output_head_bias else None
        self.frozen_head: FrozenWeight | None = None
        """The head's weight once more, packed, where it is not trained: the loss takes it from here."""
        self.checkpointing = False
        """Compute each layer twice in training, and keep less of it meanwhile."""
        self.dropout = DropoutSource(config.dropout)
        size = config.rotary_size if config.positions == "rotary" else 0
        self.rotary = RotaryTables(size, config.rotary_base, config.rotary_scaling, config.context_length)
        local = config.local_rotary_base
        self.local_rotary = self.rotary if local is None else RotaryTables(size, local, None, config.context_length)
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        if self.embedding.weight.is_meta:  # a shape that a file's tensors will fill
            return
        deviation = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2 or name.endswith("bias"):
                continue
            scale = 1 / math.sqrt(2 * self.config.layers) if name.endswith(("output.weight", "down.weight")) else 1.0
            scale = 1 / 20 if name == "output_head.weight" else scale
            parameter.normal_(0.0, deviation * scale, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        """(V, C): the embedding itself when tied (arXiv 1608.05859)."""
        return self.embedding.weight if self.output_head is None else self.output_head.weight

    def forward(self, token_ids: Tensor, context: AttentionContext | None = None) -> Tensor:
        """(B, T) int64 → hidden states (B, T, C) after the final norm, of all tokens or of those that the context keeps.

        Raises UsageError when a position lies beyond the context length.
        """
        context = context or CausalContext(dropout=self.config.attention_dropout if self.training else 0.0)
        positions = context.positions(token_ids.shape[1])
        rotation, local_rotation = self._rotations(positions, token_ids, context)
        x = self._embedded(token_ids, positions)
        update = None
        for layer, block in enumerate(self.blocks):
            turn = local_rotation if self.config.window(layer) else rotation
            x, update = self._through(block, x, update, turn, context)
        if self.final_norm is None:
            return x
        return self.final_norm(x, update, self.dropout.next(self.training) if update is not None else None)[1]  # type: ignore[no-any-return]

    def _through(
        self, block: nn.Module, x: Tensor, update: Tensor | None, rotation: Rotation, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        """One layer, of which only the input is kept for the backward pass where :attr:`checkpointing` (arXiv 1604.06174)."""
        if not self.checkpointing or not torch.is_grad_enabled():
            return block(x, update, rotation, context, self.dropout)  # type: ignore[no-any-return]
        uses, training = self.dropout.uses, block.training

        def again() -> tuple[Tensor, Tensor | None]:
            self.dropout.uses = uses  # the same elements are dropped
            with suspended(), _mode(block, training):  # the model's may be another by the time of the backward pass
                return block(x, update, rotation, context, self.dropout)  # type: ignore[no-any-return]

        from torch.utils.checkpoint import checkpoint  # not at the top: it takes a while, and few need it

        return checkpoint(again, use_reentrant=False, preserve_rng_state=bool(self.config.attention_dropout))  # type: ignore[no-any-return]

    def _embedded(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """(B, T) ids and their positions → (B, T, C)"""
        x = self.embedding(token_ids)
        if self.position_embedding is not None:
            x = add(x, self.position_embedding(positions.to(x.device)).expand_as(x))
        dropout = self.dropout.next(self.training)
        return dropout(x) if dropout else x

    def _rotations(self, positions: Tensor, token_ids: Tensor, context: AttentionContext) -> tuple[Rotation, Rotation]:
        """How layers without a window turn their heads, and how those with one do."""
        if tape.recording() is not None:  # positions are an address here; who records has checked them
            length, device, index = self.config.context_length, token_ids.device, positions.view(-1)
        else:
            known = getattr(context, "reach", None)  # of contexts whose positions lie where looking at them would wait for them
            length, device = self._reach(positions) if known is None else known, token_ids.device
            index = positions.to(device).expand(token_ids.shape).reshape(-1).to(torch.int32).contiguous()
        with torch.inference_mode(False):  # tables made while scoring must serve a later training step
            if self.rotary.follows_length and isinstance(context, PackedContext):  # each sequence by its own length
                cosines, sines, firsts = self.rotary.reach_each(context.lengths().flatten(), device)
                rotation = Rotation(cosines, sines, (index + firsts).to(torch.int32))
            else:
                rotation = Rotation(*self.rotary.reach(length, device), index)
            if self.local_rotary is self.rotary:
                return rotation, rotation
            return rotation, Rotation(*self.local_rotary.reach(length, device), index)

    def _reach(self, positions: Tensor) -> int:
        """Tokens up to the last position.

        :raises UsageError: beyond the context length.
        """
        length, limit = int(positions.max()) + 1, self.config.context_length
        if length > limit:
            raise UsageError(
                f"position {length - 1} lies beyond the model's context_length {limit}; shorten the text to {limit} tokens"
            )
        return length

    def head(self, hidden: Tensor) -> Tensor:
        """(..., C) → logits (..., V) float32."""
        logits: Tensor = (self.embedding.project(hidden) if self.output_head is None else self.output_head(hidden)).float()
        return logits if self.head_bias is None else logits + self.head_bias.float()

    def logits(
        self, token_ids: Tensor, context: AttentionContext | None = None, *, attention_mask: Tensor | None = None
    ) -> Tensor:
        """(B, T) int64 → (B, T, V) float32.

        :param attention_mask: (B, T), 0 for padding, where no context is given; see :class:`PaddedContext`.
        """
        if attention_mask is not None:
            assert context is None, "a context brings its own mask"
            context = PaddedContext(attention_mask)
        return self.head(self(token_ids, context))

    def loss(self, token_ids: Tensor, targets: Tensor, context: AttentionContext | None = None, *, scale: float = 1.0) -> Tensor:
        """scale * sum of the cross-entropies, in nats, of targets (B, T) int64; negative targets do not count. Float32 scalar."""
        hidden, weight = self.head_factors(self(token_ids, context).flatten(0, 1))
        return linear_cross_entropy(hidden, weight, targets.flatten(), scale=scale)

    def head_factors(self, hidden: Tensor) -> tuple[Tensor, Tensor | FrozenWeight]:
        """(N, C) → the rows and the matrix whose product are the logits: (N, C'), (V, C')."""
        if self.frozen_head is not None:
            return hidden, self.frozen_head
        weight = self.head_weight
        if self.head_bias is None:
            return hidden, weight
        bias = self.head_bias[:, None].to(weight.dtype)  # of one more input that is always 1
        return functional.pad(hidden, (0, 1), value=1.0), torch.cat((weight, bias), dim=1)
