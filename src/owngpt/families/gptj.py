"""GPT-J (Wang and Komatsuzaki 2021): rotary positions, and attention and feed-forward layer side by side behind one norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from owngpt.families.base import ACTIVATION_NAMES, ACTIVATIONS, ConfigReader, Order, Part, TensorMap, differences, one
from owngpt.families.gpt2 import SUMMARY_FIELDS, head_split, with_bias
from owngpt.model.config import GPTConfig

ALWAYS: dict[str, Any] = {
    "positions": "rotary",
    "rotary_base": 10000.0,
    "rotary_scaling": None,
    "local_rotary_base": None,
    "norm": "layernorm",
    "norm_placement": "pre",
    "parallel_residual": True,
    "shared_norm": True,
    "query_key_value_bias": False,
    "attention_output_bias": False,
    "mlp_bias": True,
    "query_key_norm": False,
    "attention_windows": (),
    "attention_scale": None,
    "attention_sinks": False,
    "embedding_scale": 1.0,
    "output_head_bias": True,
    "experts": 0,
}
"""What GPT-J always is."""


class GPTJ:
    """The layout of GPT-J. It turns neighbouring elements of a head together, ours those half of the rotated part away: the
    rows of queries and keys change places."""

    model_type = "gptj"
    architecture = "GPTJForCausalLM"
    prefix = "transformer."
    derived = r"\.attn\.(masked_)?bias$|embed_positions$"

    def to_config(self, values: Mapping[str, Any]) -> GPTConfig:
        """See :class:`Family`."""
        reader = ConfigReader(values, self.model_type)
        reader.ignore("n_ctx", "embd_pdrop", *SUMMARY_FIELDS)
        reader.expect("rotary", True)
        reader.expect("scale_attn_weights", True)
        width, heads = head_split(reader, "n_embd", "n_head")
        rotated = reader.integer("rotary_dim", 64)
        if rotated % 2 or rotated > width // heads:
            raise reader.error("rotary_dim", rotated, f"even and at most {width // heads}, the size of a head")
        config = GPTConfig(
            vocab_size=reader.integer("vocab_size", 50400),
            context_length=reader.context_length("n_positions", 2048),
            hidden_size=width,
            layers=reader.layers("n_layer"),
            heads=heads,
            key_value_heads=heads,
            head_size=width // heads,
            intermediate_size=reader.integer("n_inner", 4 * width),
            rotary_fraction=_fraction(rotated, width // heads),
            norm_epsilon=reader.number("layer_norm_epsilon", 1e-5),
            activation=reader.choice("activation_function", "gelu_new", ACTIVATIONS),
            tie_embeddings=reader.flag("tie_word_embeddings", False),
            dropout=reader.number("resid_pdrop", 0.0),
            attention_dropout=reader.number("attn_pdrop", 0.0),
            initializer_range=reader.number("initializer_range", 0.02),
            **ALWAYS,
        )
        reader.finish()
        return config

    def from_config(self, config: GPTConfig) -> dict[str, Any]:
        """See :class:`Family`."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": config.vocab_size,
            "n_positions": config.context_length,
            "n_embd": config.hidden_size,
            "n_layer": config.layers,
            "n_head": config.heads,
            "rotary_dim": config.rotary_size,
            "n_inner": config.intermediate_size,
            "activation_function": ACTIVATION_NAMES[config.activation],
            "layer_norm_epsilon": config.norm_epsilon,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.attention_dropout,
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.initializer_range,
            "use_cache": True,
        }

    def tensors(self, config: GPTConfig) -> list[TensorMap]:
        """See :class:`Family`."""
        V, C = config.vocab_size, config.hidden_size
        maps = [one("embedding.weight", "transformer.wte.weight", V, C)]
        for layer in range(config.layers):
            maps += _layer(config, f"blocks.{layer}.", f"transformer.h.{layer}.")
        maps += [*with_bias("final_norm", "transformer.ln_f", C), one("head_bias", "lm_head.bias", V)]
        if not config.tie_embeddings:
            maps.append(one("output_head.weight", "lm_head.weight", V, C))
        return maps

    def misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`Family`."""
        wanted = {**ALWAYS, "key_value_heads": config.heads, "hidden_size": config.heads * config.head_size}
        found = differences(config, **wanted)
        if not config.rotary_size:
            found.append("no part of a head is rotated")
        return found + ([] if config.activation in ACTIVATION_NAMES else [f"activation is {config.activation!r}"])


def _fraction(rotated: int, size: int) -> float:
    """The share of a head that gives this number of elements again, whichever way the division rounded."""
    fraction = rotated / size
    return fraction if int(size * fraction) == rotated else math.nextafter(fraction, 2.0)


def _halves(size: int, rotated: int) -> Order:
    """Of each head: the first of every pair, then the second of every pair, then what is not rotated."""
    head = torch.cat((torch.arange(0, rotated, 2), torch.arange(1, rotated, 2), torch.arange(rotated, size)))

    def order(rows: int) -> Tensor:
        return (torch.arange(0, rows, size)[:, None] + head).flatten()

    return order


def _layer(config: GPTConfig, ours: str, theirs: str) -> list[TensorMap]:
    C, F = config.hidden_size, config.intermediate_size
    halves = _halves(config.head_size, config.rotary_size)
    parts = tuple(
        Part(f"{theirs}attn.{name}_proj.weight", C, order=order) for name, order in (("q", halves), ("k", halves), ("v", None))
    )
    return [
        *with_bias(f"{ours}attention_norm", f"{theirs}ln_1", C),
        TensorMap(f"{ours}attention.query_key_value.weight", parts, (3 * C, C)),
        one(f"{ours}attention.output.weight", f"{theirs}attn.out_proj.weight", C, C),
        *with_bias(f"{ours}mlp.up", f"{theirs}mlp.fc_in", F, C),
        *with_bias(f"{ours}mlp.down", f"{theirs}mlp.fc_out", C, F),
    ]
