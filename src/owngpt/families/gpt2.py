"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each sub-layer, a GELU, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owngpt.families.base import ACTIVATION_NAMES, ACTIVATIONS, ConfigReader, TensorMap, differences, one, uniform_window
from owngpt.model.config import GPTConfig

SUMMARY_FIELDS = (
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
)  # fmt: skip
"""They shape a classification head, which a language model does not have."""


class GPT2:
    """The layout of GPT-2, GPT-2 medium and their kin."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    derived = r"\.attn\.(masked_)?bias$"

    def to_config(self, values: Mapping[str, Any]) -> GPTConfig:
        """See :class:`Family`."""
        reader = ConfigReader(values, self.model_type)
        reader.ignore("n_ctx", "reorder_and_upcast_attn", "embd_pdrop", *SUMMARY_FIELDS)
        reader.expect("scale_attn_by_inverse_layer_idx", False)
        reader.expect("add_cross_attention", False)
        width, heads = head_split(reader, "n_embd", "n_head")
        config = GPTConfig(
            vocab_size=reader.integer("vocab_size", 50257),
            context_length=reader.context_length("n_positions", 1024),
            hidden_size=width,
            layers=reader.layers("n_layer"),
            heads=heads,
            key_value_heads=heads,
            head_size=width // heads,
            intermediate_size=reader.integer("n_inner", 4 * width),
            norm_epsilon=reader.number("layer_norm_epsilon", 1e-5),
            activation=reader.choice("activation_function", "gelu_new", ACTIVATIONS),
            attention_scale=None if reader.flag("scale_attn_weights", True) else 1.0,
            tie_embeddings=reader.flag("tie_word_embeddings", True),
            dropout=reader.number("resid_pdrop", 0.1),
            attention_dropout=reader.number("attn_pdrop", 0.1),
            initializer_range=reader.number("initializer_range", 0.02),
            **CLASSIC,
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
            "n_inner": config.intermediate_size,
            "activation_function": ACTIVATION_NAMES[config.activation],
            "layer_norm_epsilon": config.norm_epsilon,
            "scale_attn_weights": config.attention_scale is None,
            "scale_attn_by_inverse_layer_idx": False,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.attention_dropout,
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.initializer_range,
            "use_cache": True,
        }

    def tensors(self, config: GPTConfig) -> list[TensorMap]:
        """See :class:`Family`."""
        C = config.hidden_size
        maps = [
            one("embedding.weight", "transformer.wte.weight", config.vocab_size, C),
            one("position_embedding.weight", "transformer.wpe.weight", config.context_length, C),
        ]
        for layer in range(config.layers):
            maps += conv1d_layer(config, f"blocks.{layer}.", f"transformer.h.{layer}.")
        maps += with_bias("final_norm", "transformer.ln_f", C)
        if not config.tie_embeddings:
            maps.append(one("output_head.weight", "lm_head.weight", config.vocab_size, C))
        return maps

    def misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`Family`."""
        found = classic_misfits(config, CLASSIC)
        if config.attention_scale not in (None, 1.0):
            found.append(f"attention_scale is {config.attention_scale}")
        return found + (["it has attention windows"] if uniform_window(config) != 0 else [])


CLASSIC: dict[str, Any] = {
    "positions": "learned",
    "norm": "layernorm",
    "norm_placement": "pre",
    "query_key_value_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "query_key_norm": False,
    "parallel_residual": False,
    "attention_sinks": False,
    "embedding_scale": 1.0,
    "output_head_bias": False,
    "experts": 0,
}
"""What GPT-2 always is; GPT-1 and GPT-Neo differ from it in one field each."""


def classic_misfits(config: GPTConfig, wanted: Mapping[str, Any]) -> list[str]:
    """What keeps a configuration out of the family of GPT-1, GPT-2 and GPT-Neo."""
    found = differences(config, **wanted, key_value_heads=config.heads, hidden_size=config.heads * config.head_size)
    return found + ([] if config.activation in ACTIVATION_NAMES else [f"activation is {config.activation!r}"])


def head_split(reader: ConfigReader, width_name: str, heads_name: str) -> tuple[int, int]:
    """Hidden size and number of heads, which must divide it."""
    width, heads = reader.integer(width_name), reader.integer(heads_name)
    if width % heads:
        raise reader.error(heads_name, heads, f"a divisor of {width_name} {width}")
    return width, heads


def with_bias(ours: str, theirs: str, *shape: int, transposed: bool = False) -> list[TensorMap]:
    """A weight of this shape and its bias, one value a row."""
    return [
        one(f"{ours}.weight", f"{theirs}.weight", *shape, transposed=transposed),
        one(f"{ours}.bias", f"{theirs}.bias", shape[0]),
    ]


def conv1d_layer(config: GPTConfig, ours: str, theirs: str) -> list[TensorMap]:
    """One layer of GPT-1 or GPT-2; query, key and value are one matrix there too."""
    C, F = config.hidden_size, config.intermediate_size
    return [
        *with_bias(f"{ours}attention_norm", f"{theirs}ln_1", C),
        *with_bias(f"{ours}attention.query_key_value", f"{theirs}attn.c_attn", 3 * C, C, transposed=True),
        *with_bias(f"{ours}attention.output", f"{theirs}attn.c_proj", C, C, transposed=True),
        *with_bias(f"{ours}mlp_norm", f"{theirs}ln_2", C),
        *with_bias(f"{ours}mlp.up", f"{theirs}mlp.c_fc", F, C, transposed=True),
        *with_bias(f"{ours}mlp.down", f"{theirs}mlp.c_proj", C, F, transposed=True),
    ]
