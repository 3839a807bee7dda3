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
    x = p["embedding.weight"][ids] * config.embedding_scale  # (T, C)
    if config.positions == "learned":
        x = x + p["position_embedding.weight"][: len(ids)]
    for layer in range(config.layers):
        x = _layer(config, p, layer, x, first)
    if config.norm_placement != "post":
        x = _norm(config, p, "final_norm", x)
    head = p["embedding.weight"] if config.tie_embeddings else p["output_head.weight"]
    return x @ head.T + (p["head_bias"] if config.output_head_bias else 0)


def _layer(config: GPTConfig, p: Parameters, layer: int, x: Tensor, first: list[int]) -> Tensor:
    name = f"blocks.{layer}"
    if config.norm_placement == "post":  # arXiv 1706.03762, GPT-1
        x = _norm(config, p, f"{name}.attention_norm", x + _attention(config, p, layer, x, first))
        return _norm(config, p, f"{name}.mlp_norm", x + _mlp(config, p, f"{name}.mlp", x))
    attended = _attention(config, p, layer, _norm(config, p, f"{name}.attention_norm", x), first)
    if config.parallel_residual:  # arXiv 2204.06745, section 2.1.2; with one norm GPT-J
        other = "attention_norm" if config.shared_norm else "mlp_norm"
        return x + attended + _mlp(config, p, f"{name}.mlp", _norm(config, p, f"{name}.{other}", x))
    sandwich = config.norm_placement == "sandwich"  # arXiv 2503.19786
    x = x + (_norm(config, p, f"{name}.attention_output_norm", attended) if sandwich else attended)
    fed = _mlp(config, p, f"{name}.mlp", _norm(config, p, f"{name}.mlp_norm", x))
    return x + (_norm(config, p, f"{name}.mlp_output_norm", fed) if sandwich else fed)


def _linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _norm(config: GPTConfig, p: Parameters, name: str, x: Tensor) -> Tensor:
    if config.norm == "rmsnorm":
        return _rms(x, config.norm_epsilon) * (config.norm_weight_offset + p[f"{name}.weight"])
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
            query = _rms(query, config.norm_epsilon) * (config.norm_weight_offset + p[f"{name}.query_norm.weight"])
            key = _rms(key, config.norm_epsilon) * (config.norm_weight_offset + p[f"{name}.key_norm.weight"])
        if config.positions == "rotary":
            local = window and config.local_rotary_base is not None
            base = config.local_rotary_base if local else config.rotary_base
            query, key = _rotate(config, query, base), _rotate(config, key, base)
        sink = p[f"{name}.sinks"][head] if config.attention_sinks else None
        outputs.append(_attend(query, key, value, first, window, scale, sink))
    return _linear(p, f"{name}.output", torch.cat(outputs, dim=1))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, first: list[int], window: int, scale: float, sink: Tensor | None
) -> Tensor:
    out = []
    for i in range(len(query)):
        oldest = max(first[i], i - window + 1 if window else 0)
        scores = (key[oldest : i + 1] @ query[i]) * scale
        weights = torch.exp(scores - scores.max())
        total = weights.sum() + (0 if sink is None else torch.exp(sink - scores.max()))  # arXiv 2309.17453, section 3.3
        out.append((weights / total) @ value[oldest : i + 1])
    return torch.stack(out)


def _rotate(config: GPTConfig, x: Tensor, base: float) -> Tensor:
    """Rotary positions, arXiv 2104.09864: element i turns with element i + R/2, R the rotated part of the head."""
    R = int(config.head_size * config.rotary_fraction)
    position = torch.arange(len(x), dtype=torch.float64)
    columns = list(x.unbind(1))
    for i in range(R // 2):
        angle = position * base ** (-2 * i / R)
        a, b = columns[i], columns[i + R // 2]
        columns[i] = a * torch.cos(angle) - b * torch.sin(angle)
        columns[i + R // 2] = b * torch.cos(angle) + a * torch.sin(angle)
    return torch.stack(columns, dim=1)


def _mlp(config: GPTConfig, p: Parameters, name: str, x: Tensor) -> Tensor:
    if config.experts:
        return torch.stack([_mixture(config, p, name, token) for token in x])
    if config.activation in GATED:
        hidden = _gated(config, _linear(p, f"{name}.gate_up", x))
    else:
        hidden = ACTIVATIONS[config.activation](_linear(p, f"{name}.up", x))
    return _linear(p, f"{name}.down", hidden)


def _mixture(config: GPTConfig, p: Parameters, name: str, x: Tensor) -> Tensor:
    """One token (C,): a softmax over the highest router scores weighs their experts (arXiv 1701.06538, section 2.1)."""
    scores = _linear(p, f"{name}.router", x)
    best = sorted(range(config.experts), key=lambda expert: -scores[expert].item())[: config.experts_per_token]
    total = sum(torch.exp(scores[expert]) for expert in best)
    out = torch.zeros_like(x)
    for expert in best:
        own = {key: value[expert] for key, value in p.items() if key.startswith((f"{name}.gate_up.", f"{name}.down."))}
        hidden = _gated(config, _linear(own, f"{name}.gate_up", x))
        out = out + torch.exp(scores[expert]) / total * _linear(own, f"{name}.down", hidden)
    return out


def _gated(config: GPTConfig, both: Tensor) -> Tensor:
    gate, up = both[..., : config.intermediate_size], both[..., config.intermediate_size :]
    return GATED[config.activation](gate, up)


def _clamped(gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss, arXiv 2508.10925."""
    gate = torch.where(gate > 7, torch.full_like(gate, 7), gate)
    up = torch.where(up > 7, torch.full_like(up, 7), torch.where(up < -7, torch.full_like(up, -7), up))
    return gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)


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


GATED = {  # arXiv 2002.05202; GEGLU as Gemma computes it
    "swiglu": lambda gate, up: _silu(gate) * up,
    "geglu": lambda gate, up: _gelu_tanh(gate) * up,
    "swiglu_clamped": _clamped,
}
ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "relu2": lambda x: _relu(x) ** 2,  # arXiv 2109.08668
    "silu": _silu,
}
