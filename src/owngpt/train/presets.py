"""The shapes that have a name: the papers' models, and the native layout at any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from owngpt.model.config import GPTConfig


def native(
    vocab_size: int, context_length: int, hidden_size: int, layers: int, *, head_size: int | None = None, **changes: Any
) -> GPTConfig:
    """Qwen3's layout (arXiv 2505.09388) at a given width and depth; feed-forward width 8/3 C as in arXiv 2302.13971."""
    size = head_size or (64 if hidden_size % 64 == 0 else 32)
    heads = max(1, hidden_size // size)
    shape = GPTConfig(
        vocab_size=vocab_size, context_length=context_length, hidden_size=hidden_size, layers=layers, heads=heads,
        key_value_heads=heads, head_size=size, intermediate_size=max(64, round(hidden_size * 8 / 3 / 64) * 64),
    )  # fmt: skip
    return replace(shape, **changes)


_GPT2 = {
    "positions": "learned", "norm": "layernorm", "norm_epsilon": 1e-5, "activation": "gelu_tanh", "query_key_value_bias": True,
    "attention_output_bias": True, "mlp_bias": True, "query_key_norm": False,
}  # fmt: skip
_SMALL = {"hidden_size": 768, "layers": 12, "heads": 12, "key_value_heads": 12, "head_size": 64, "intermediate_size": 3072}
_WITHOUT_PROJECTION_BIAS = {**_GPT2, "query_key_value_bias": False}

PRESETS: dict[str, dict[str, Any]] = {
    # GPT-1: "Improving Language Understanding by Generative Pre-Training" (2018): norms after the residual sums.
    "gpt": {**_GPT2, **_SMALL, "vocab_size": 40478, "context_length": 512, "norm_placement": "post"},
    # GPT-2: "Language Models are Unsupervised Multitask Learners" (2019).
    "gpt2": {**_GPT2, **_SMALL, "vocab_size": 50257, "context_length": 1024},
    "gpt2-medium": {
        **_GPT2,
        "hidden_size": 1024,
        "layers": 24,
        "heads": 16,
        "key_value_heads": 16,
        "head_size": 64,
        "intermediate_size": 4096,
        "vocab_size": 50257,
        "context_length": 1024,
    },
    # GPT-3 small (arXiv 2005.14165): dense and locally banded layers in turn, band 256 as GPT-Neo chose (the paper names none).
    # No bias on queries, keys and values, so that it saves exactly as gpt_neo.
    "gpt3-small": {
        **_WITHOUT_PROJECTION_BIAS,
        **_SMALL,
        "vocab_size": 50257,
        "context_length": 2048,
        "attention_windows": (0, 256) * 6,
    },
    # GPT-Neo 125M (EleutherAI): as above, with unscaled attention logits.
    "gpt-neo-125m": {
        **_WITHOUT_PROJECTION_BIAS,
        **_SMALL,
        "vocab_size": 50257,
        "context_length": 2048,
        "attention_windows": (0, 256) * 6,
        "attention_scale": 1.0,
    },
}


def preset(name: str, **changes: Any) -> GPTConfig:
    """The configuration of a named preset with some fields changed; ``attention_windows`` follow a changed depth."""
    fields = {**PRESETS[name], **changes}
    windows = fields.get("attention_windows", ())
    if windows and len(windows) != fields["layers"]:
        fields["attention_windows"] = tuple(windows[index % len(windows)] for index in range(fields["layers"]))
    return GPTConfig(**fields)
