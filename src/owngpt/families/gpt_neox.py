"""GPT-NeoX (Black et al. 2022, arXiv 2204.06745) and Pythia: rotary positions on a part of each head, parallel residual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from owngpt.families.base import ACTIVATION_NAMES, ACTIVATIONS, ConfigReader, Order, Part, TensorMap, differences, one
from owngpt.families.gpt2 import head_split, with_bias
from owngpt.families.rotary import read_rotary, rotary_fields, rotary_misfits
from owngpt.model.config import GPTConfig

ALWAYS: dict[str, Any] = {
    "positions": "rotary",
    "local_rotary_base": None,
    "norm": "layernorm",
    "norm_placement": "pre",
    "shared_norm": False,
    "mlp_bias": True,
    "query_key_norm": False,
    "attention_windows": (),
    "attention_scale": None,
    "attention_sinks": False,
    "embedding_scale": 1.0,
    "output_head_bias": False,
    "experts": 0,
}
"""What GPT-NeoX always is."""


class GPTNeoX:
    """The layout of GPT-NeoX. The rows of its fused matrix are query, key and value of one head after another."""

    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    prefix = "gpt_neox."
    derived = r"\.attention\.(masked_)?bias$|rotary_emb\.inv_freq$"

    def to_config(self, values: Mapping[str, Any]) -> GPTConfig:
        """See :class:`Family`."""
        reader = ConfigReader(values, self.model_type)
        reader.ignore("hidden_dropout_prob", "attention_probs_dropout_prob")  # of the first files, and 0 there
        width, heads = head_split(reader, "hidden_size", "num_attention_heads")
        rotary = read_rotary(
            reader,
            reader.context_length("max_position_embeddings", 2048),
            base=reader.number("rotary_emb_base", 10000.0),
            fraction=reader.number("rotary_pct", 0.25),
        )
        bias = reader.flag("attention_bias", True)
        config = GPTConfig(
            vocab_size=reader.integer("vocab_size", 50432),
            context_length=rotary.context_length,
            hidden_size=width,
            layers=reader.layers("num_hidden_layers"),
            heads=heads,
            key_value_heads=heads,
            head_size=width // heads,
            intermediate_size=reader.integer("intermediate_size", 24576),
            rotary_base=rotary.base,
            rotary_fraction=rotary.fraction,
            rotary_scaling=rotary.scaling,
            norm_epsilon=reader.number("layer_norm_eps", 1e-5),
            parallel_residual=reader.flag("use_parallel_residual", True),
            activation=reader.choice("hidden_act", "gelu", ACTIVATIONS),
            query_key_value_bias=bias,
            attention_output_bias=bias,
            tie_embeddings=reader.flag("tie_word_embeddings", False),
            dropout=reader.number("hidden_dropout", 0.0),
            attention_dropout=reader.number("attention_dropout", 0.0),
            initializer_range=reader.number("initializer_range", 0.02),
            **ALWAYS,
        )
        reader.finish()
        return config

    def from_config(self, config: GPTConfig) -> dict[str, Any]:
        """See :class:`Family`."""
        rotary = rotary_fields(config)
        rotary["rope_parameters"]["partial_rotary_factor"] = config.rotary_fraction
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "intermediate_size": config.intermediate_size,
            "hidden_act": ACTIVATION_NAMES[config.activation],
            "layer_norm_eps": config.norm_epsilon,
            "use_parallel_residual": config.parallel_residual,
            "attention_bias": config.query_key_value_bias,
            **rotary,
            "rotary_emb_base": config.rotary_base,
            "rotary_pct": config.rotary_fraction,
            "hidden_dropout": config.dropout,
            "attention_dropout": config.attention_dropout,
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.initializer_range,
            "use_cache": True,
        }

    def tensors(self, config: GPTConfig) -> list[TensorMap]:
        """See :class:`Family`."""
        V, C = config.vocab_size, config.hidden_size
        maps = [one("embedding.weight", "gpt_neox.embed_in.weight", V, C)]
        for layer in range(config.layers):
            maps += _layer(config, f"blocks.{layer}.", f"gpt_neox.layers.{layer}.")
        maps += with_bias("final_norm", "gpt_neox.final_layer_norm", C)
        if not config.tie_embeddings:
            maps.append(one("output_head.weight", "embed_out.weight", V, C))
        return maps

    def misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`Family`."""
        wanted = {**ALWAYS, "key_value_heads": config.heads, "hidden_size": config.heads * config.head_size}
        found = differences(config, **wanted, attention_output_bias=config.query_key_value_bias)
        if not config.rotary_size:
            found.append("no part of a head is rotated")
        found += [] if config.activation in ACTIVATION_NAMES else [f"activation is {config.activation!r}"]
        return found + rotary_misfits(config)


def _by_kind(heads: int) -> Order:
    """All queries, then all keys, then all values, out of rows that hold the three of each head side by side."""

    def order(rows: int) -> Tensor:
        return torch.arange(rows).view(heads, 3, -1).transpose(0, 1).flatten()

    return order


def _layer(config: GPTConfig, ours: str, theirs: str) -> list[TensorMap]:
    C, F = config.hidden_size, config.intermediate_size
    fused, theirs_fused, order = f"{ours}attention.query_key_value", f"{theirs}attention.query_key_value", _by_kind(config.heads)
    maps = [
        *with_bias(f"{ours}attention_norm", f"{theirs}input_layernorm", C),
        TensorMap(f"{fused}.weight", (Part(f"{theirs_fused}.weight", 3 * C, order=order),), (3 * C, C)),
        one(f"{ours}attention.output.weight", f"{theirs}attention.dense.weight", C, C),
        *with_bias(f"{ours}mlp_norm", f"{theirs}post_attention_layernorm", C),
        *with_bias(f"{ours}mlp.up", f"{theirs}mlp.dense_h_to_4h", F, C),
        *with_bias(f"{ours}mlp.down", f"{theirs}mlp.dense_4h_to_h", C, F),
    ]
    if config.query_key_value_bias:
        maps.append(one(f"{fused}.bias", f"{theirs_fused}.bias", 3 * C, order=order))
        maps.append(one(f"{ours}attention.output.bias", f"{theirs}attention.dense.bias", C))
    return maps
