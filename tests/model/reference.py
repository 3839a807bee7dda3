"""A GPT written down from the papers in float64, one head and one query at a time: slow, plain, and independent of ours.

It shares nothing with the package but GPTConfig's fields and the parameter names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from owngpt.model.config import GPTConfig

Parameters = dict[str, Tensor]


def logits(config: GPTConfig, parameters: Parameters, token_ids: Tensor, starts: Tensor | None = None) -> Tensor:
    """(B, T) int64 -> (B, T, V) float64. ``starts`` (B, T): first position that each position may attend to."""
    rows = []
    for row, ids in enumerate(token_ids):
        first = [0] * len(ids) if starts is None else starts[row].tolist()
        rows.append(_sequence(config, parameters, ids, first))
    return torch.stack(rows)


def negative_log_likelihood(scores: Tensor, targets: Tensor) -> Tensor:
    """Sum over the targets that are not -100 of -ln P(target)."""
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(scores.reshape(-1, scores.shape[-1]), targets.reshape(-1).tolist(), strict=True):
        if target != -100:
            total = total + torch.logsumexp(row, 0) - row[target]
    return total


def _sequence(config: GPTConfig, p: Parameters, ids: Tensor, first: list[int]) -> Tensor:
    x = p["embedding.weight"][ids]  # (T, C)
    if config.positions == "learned":
        x = x + p["position_embedding.weight"][: len(ids)]
    for layer in range(config.layers):
        name = f"blocks.{layer}"
        if config.norm_placement == "pre":  # GPT-2
            x = x + _attention(config, p, layer, _norm(config, p, f"{name}.attention_norm", x), first)
            x = x + _mlp(config, p, f"{name}.mlp", _norm(config, p, f"{name}.mlp_norm", x))
        else:  # arXiv 1706.03762, GPT-1
            x = _norm(config, p, f"{name}.attention_norm", x + _attention(config, p, layer, x, first))
            x = _norm(config, p, f"{name}.mlp_norm", x + _mlp(config, p, f"{name}.mlp", x))
    if config.norm_placement == "pre":
        x = _norm(config, p, "final_norm", x)
    head = p["embedding.weight"] if config.tie_embeddings else p["output_head.weight"]
    return x @ head.T


def _linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _norm(config: GPTConfig, p: Parameters, name: str, x: Tensor) -> Tensor:
    if config.norm == "rmsnorm":
        return _rms(x, config.norm_epsilon) * p[f"{name}.weight"]
    mean = x.sum(-1, keepdim=True) / x.shape[-1]  # LayerNorm, arXiv 1607.06450
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return (x - mean) / (variance + config.norm_epsilon) ** 0.5 * p[f"{name}.weight"] + p[f"{name}.bias"]


def _rms(x: Tensor, epsilon: float) -> Tensor:
    """RMSNorm, arXiv 1910.07467."""
    return x / ((x**2).sum(-1, keepdim=True) / x.shape[-1] + epsilon) ** 0.5


def _attention(config: GPTConfig, p: Parameters, layer: int, x: Tensor, first: list[int]) -> Tensor:
    """arXiv 1706.03762, section 3.2; query head h reads key head h // (H / G) (arXiv 2305.13245)."""
    H, G, D = config.heads, config.key_value_heads, config.head_size
    name = f"blocks.{layer}.attention"
    qkv = _linear(p, f"{name}.query_key_value", x)  # (T, (H + 2G) D)
    scale = 1 / math.sqrt(D) if config.attention_scale is None else config.attention_scale
    window = config.attention_windows[layer] if config.attention_windows else 0
    outputs = []
    for head in range(H):
        group = head // (H // G)
        query = qkv[:, head * D : (head + 1) * D]
        key = qkv[:, (H + group) * D : (H + group + 1) * D]
        value = qkv[:, (H + G + group) * D : (H + G + group + 1) * D]
        if config.query_key_norm:
            query = _rms(query, config.norm_epsilon) * p[f"{name}.query_norm.weight"]
            key = _rms(key, config.norm_epsilon) * p[f"{name}.key_norm.weight"]
        if config.positions == "rotary":
            query, key = _rotate(config, query), _rotate(config, key)
        outputs.append(_attend(query, key, value, first, window, scale))
    return _linear(p, f"{name}.output", torch.cat(outputs, dim=1))


def _attend(query: Tensor, key: Tensor, value: Tensor, first: list[int], window: int, scale: float) -> Tensor:
    out = []
    for i in range(len(query)):
        oldest = max(first[i], i - window + 1 if window else 0)
        scores = (key[oldest : i + 1] @ query[i]) * scale
        weights = torch.exp(scores - scores.max())
        out.append((weights / weights.sum()) @ value[oldest : i + 1])
    return torch.stack(out)


def _rotate(config: GPTConfig, x: Tensor) -> Tensor:
    """Rotary positions, arXiv 2104.09864: element i turns with element i + R/2, R the rotated part of the head."""
    R = int(config.head_size * config.rotary_fraction)
    position = torch.arange(len(x), dtype=torch.float64)
    columns = list(x.unbind(1))
    for i in range(R // 2):
        angle = position * config.rotary_base ** (-2 * i / R)
        a, b = columns[i], columns[i + R // 2]
        columns[i] = a * torch.cos(angle) - b * torch.sin(angle)
        columns[i + R // 2] = b * torch.cos(angle) + a * torch.sin(angle)
    return torch.stack(columns, dim=1)


def _mlp(config: GPTConfig, p: Parameters, name: str, x: Tensor) -> Tensor:
    F = config.intermediate_size
    if config.activation in ("swiglu", "geglu"):  # arXiv 2002.05202
        both = _linear(p, f"{name}.gate_up", x)
        gate, up = both[:, :F], both[:, F:]
        hidden = (_silu(gate) if config.activation == "swiglu" else _gelu_tanh(gate)) * up  # GEGLU as Gemma computes it
    else:
        hidden = ACTIVATIONS[config.activation](_linear(p, f"{name}.up", x))
    return _linear(p, f"{name}.down", hidden)


def _gelu(x: Tensor) -> Tensor:
    """x Phi(x), arXiv 1606.08415."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _gelu_tanh(x: Tensor) -> Tensor:
    """The approximation in section 2 of arXiv 1606.08415."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "relu2": lambda x: _relu(x) ** 2,  # arXiv 2109.08668
    "silu": _silu,
}
