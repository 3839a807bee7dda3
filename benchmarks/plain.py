"""The same GPTs in plain PyTorch, as people write them: modules, autocast to bfloat16, fused AdamW, optionally torch.compile.

Parameter names and shapes are those of :class:`owngpt.model.gpt.GPT`, so weights can be copied over and both must give the same
loss (tests/benchmarks/test_plain.py): what is compared in speed is the same work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from owngpt.model.config import GPTConfig


def _norm(config: GPTConfig) -> nn.Module:
    kind = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_epsilon)


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(B, H, T, D) turned by (T, D/2) angles (arXiv 2104.09864)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


class Attention(nn.Module):
    """Causal multi-head attention through PyTorch's own fused kernel."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.heads * config.head_size
        self.heads, self.rotary = config.heads, config.positions == "rotary"
        self.query_key_value = nn.Linear(config.hidden_size, 3 * width, bias=config.query_key_value_bias)
        self.output = nn.Linear(width, config.hidden_size, bias=config.attention_output_bias)
        norms = [nn.RMSNorm(config.head_size, eps=config.norm_epsilon) if config.query_key_norm else None for _ in range(2)]
        self.query_norm, self.key_norm = norms

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        B, T, _ = x.shape
        query, key, value = self.query_key_value(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.query_norm is not None and self.key_norm is not None:
            # In float32 as their weights are: PyTorch's fused norm takes no mixture.
            query, key = self.query_norm(query.float()), self.key_norm(key.float())
        if self.rotary:
            query, key = _rotate(query, cosines, sines), _rotate(key, cosines, sines)
        mixed = functional.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """SwiGLU or GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C, F = config.hidden_size, config.intermediate_size
        if config.gated:
            self.gate_up = nn.Linear(C, 2 * F, bias=False)
        else:
            self.up = nn.Linear(C, F, bias=config.mlp_bias)
        self.gated = config.gated
        self.down = nn.Linear(F, C, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        if self.gated:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            return self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]
        return self.down(functional.gelu(self.up(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = _norm(config), Attention(config)
        self.mlp_norm, self.mlp = _norm(config), MLP(config)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        x = x + self.attention(self.attention_norm(x), cosines, sines)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class PlainGPT(nn.Module):
    """The native layout and GPT-2's, tied, with as many key heads as query heads; no other configuration."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.norm_placement == "pre", config.norm_placement
        assert config.activation in ("swiglu", "gelu_tanh"), config.activation
        assert config.tie_embeddings, "untied"
        assert config.heads == config.key_value_heads, config.key_value_heads
        assert not any(config.attention_windows), config.attention_windows
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.context_length, config.hidden_size) if learned else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = _norm(config)
        frequencies = config.rotary_base ** (-torch.arange(0, config.head_size, 2) / config.head_size)
        angles = torch.arange(config.context_length)[:, None] * frequencies
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of (B, T) int64 targets."""
        T = ids.shape[1]
        x = self.embedding(ids)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[:T]
        for block in self.blocks:
            x = block(x, self.cosines[:T], self.sines[:T])
        logits = functional.linear(self.final_norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class PlainTrainer:
    """Forward, backward, clip, update."""

    def __init__(self, config: GPTConfig, weights: dict[str, Tensor], *, compiled: bool = False) -> None:
        """``weights``: where to start, by the names of ``owngpt``'s parameters."""
        model = PlainGPT(config)
        model.load_state_dict(weights)
        self.parameters = list(model.parameters())
        self.network: Any = torch.compile(model) if compiled else model
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(self, ids: Tensor, targets: Tensor) -> float:
        """Learn from one batch; the loss before the update."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.network(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return float(loss.detach())
