"""gemma3 in GGUF (arXiv 2503.19786): llama.cpp stores norm weights with 1 added, and knows which layers have windows."""

from __future__ import annotations

from typing import Any

from owngpt.formats.gguf.layout import Config, Pairing, shifted
from owngpt.formats.gguf.llama_like import LlamaLike
from owngpt.formats.gguf.metadata import Metadata

PATTERN = 6
"""Every sixth layer sees everything."""
LOCAL_BASE = 10000.0
LARGEST = 62
"""Layers of the 27-billion model, the one whose attention llama.cpp scales by hidden_size / heads."""


class Gemma3(LlamaLike):
    """Norms before and after each sub-layer; most layers have a window and a rotary base of their own."""

    name = "gemma3"
    model_types: tuple[str, ...] = ("gemma3_text",)
    norm_pairs = (
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    )

    def own_config(self, metadata: Metadata) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        layers = metadata.layers()
        width, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
        head_size = metadata.integer("attention.key_length", max(width // heads, 1))
        pattern = metadata.integer("attention.sliding_window_pattern", PATTERN)
        return {
            "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "query_pre_attn_scalar": width // heads if layers == LARGEST else head_size,
            "sliding_window": metadata.integer("attention.sliding_window"),
            "layer_types": _kinds(layers, pattern),
            "rope_local_base_freq": metadata.number("rope.freq_base_swa", LOCAL_BASE),
        }

    def own_keys(self, config: Config) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        return {"context_length": config["max_position_embeddings"], "attention.sliding_window": config["sliding_window"]}

    def own_misfits(self, config: Config) -> list[str]:
        """See :class:`LlamaLike`."""
        layers, scalar = config["num_hidden_layers"], config["query_pre_attn_scalar"]
        expected = config["hidden_size"] // config["num_attention_heads"] if layers == LARGEST else config["head_dim"]
        local = _local_base(config)
        found = [] if scalar == expected else [f"query_pre_attn_scalar is {scalar}; llama.cpp's gemma3 uses {expected}"]
        found += [] if config["layer_types"] == _kinds(layers, PATTERN) else ["not every sixth layer is a full one"]
        found += [] if local == LOCAL_BASE else [f"the local rotary base is {local}; llama.cpp's gemma3 uses {LOCAL_BASE}"]
        return found + (["its attention has biases"] if config.get("attention_bias") else [])

    def norm(self, theirs: str, stored: str) -> list[Pairing]:
        """See :class:`LlamaLike`."""
        return [shifted(f"{theirs}.weight", f"{stored}.weight", 1.0)]


def _kinds(layers: int, pattern: int) -> list[str]:
    return ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(layers)]


def _local_base(config: Config) -> float:
    blocks: Any = config.get("rope_parameters") or {}
    local: Any = blocks.get("sliding_attention") or {"rope_theta": config.get("rope_local_base_freq", LOCAL_BASE)}
    return float(local["rope_theta"])
