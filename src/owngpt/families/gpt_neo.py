"""GPT-Neo (Black et al. 2021): GPT-3's alternation of dense and local attention, with unscaled query-key products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from owngpt.families.base import ACTIVATION_NAMES, ACTIVATIONS, ConfigReader, Part, TensorMap, one, uniform_window
from owngpt.families.gpt2 import CLASSIC, classic_misfits, head_split, with_bias
from owngpt.model.config import GPTConfig

NO_PROJECTION_BIAS = {**CLASSIC, "query_key_value_bias": False}


class GPTNeo:
    """The layout of GPT-Neo. A configuration that scales by 1/sqrt(D) is written with the factor in the query rows, which
    changes no bit of the result when the factor is a power of two."""

    model_type = "gpt_neo"
    architecture = "GPTNeoForCausalLM"
    prefix = "transformer."
    derived = r"\.attn\.attention\.(masked_)?bias$"

    def to_config(self, values: Mapping[str, Any]) -> GPTConfig:
        """See :class:`Family`."""
        reader = ConfigReader(values, self.model_type)
        reader.ignore("embed_dropout", *(name for name in values if name.startswith("summary_")))
        width, heads = head_split(reader, "hidden_size", "num_heads")
        layers = reader.layers("num_layers")
        config = GPTConfig(
            vocab_size=reader.integer("vocab_size", 50257),
            context_length=reader.context_length("max_position_embeddings", 2048),
            hidden_size=width,
            layers=layers,
            heads=heads,
            key_value_heads=heads,
            head_size=width // heads,
            intermediate_size=reader.integer("intermediate_size", 4 * width),
            norm_epsilon=reader.number("layer_norm_epsilon", 1e-5),
            activation=reader.choice("activation_function", "gelu_new", ACTIVATIONS),
            attention_windows=_windows(reader, layers),
            attention_scale=1.0,
            tie_embeddings=reader.flag("tie_word_embeddings", True),
            dropout=reader.number("resid_dropout", 0.0),
            attention_dropout=reader.number("attention_dropout", 0.0),
            initializer_range=reader.number("initializer_range", 0.02),
            **NO_PROJECTION_BIAS,
        )
        reader.finish()
        return config

    def from_config(self, config: GPTConfig) -> dict[str, Any]:
        """See :class:`Family`."""
        kinds = ["local" if config.window(layer) else "global" for layer in range(config.layers)]
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context_length,
            "hidden_size": config.hidden_size,
            "num_layers": config.layers,
            "num_heads": config.heads,
            "intermediate_size": config.intermediate_size,
            "attention_types": [[kinds, 1]],
            "attention_layers": kinds,
            "window_size": uniform_window(config) or 256,
            "activation_function": ACTIVATION_NAMES[config.activation],
            "layer_norm_epsilon": config.norm_epsilon,
            "resid_dropout": config.dropout,
            "embed_dropout": config.dropout,
            "attention_dropout": config.attention_dropout,
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
            maps += _layer(config, f"blocks.{layer}.", f"transformer.h.{layer}.")
        maps += with_bias("final_norm", "transformer.ln_f", C)
        if not config.tie_embeddings:
            maps.append(one("output_head.weight", "lm_head.weight", config.vocab_size, C))
        return maps

    def misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`Family`."""
        found = classic_misfits(config, NO_PROJECTION_BIAS)
        scale = _scale(config)
        if scale <= 0 or math.frexp(scale)[0] != 0.5:
            found.append(f"the attention scale {scale:.6g} is not a power of two")
        return found + (["layers have different windows"] if uniform_window(config) is None else [])


def _scale(config: GPTConfig) -> float:
    return config.head_size**-0.5 if config.attention_scale is None else config.attention_scale


def _layer(config: GPTConfig, ours: str, theirs: str) -> list[TensorMap]:
    C, F = config.hidden_size, config.intermediate_size
    scales = {"q": _scale(config), "k": 1.0, "v": 1.0}
    parts = tuple(Part(f"{theirs}attn.attention.{name}_proj.weight", C, scale) for name, scale in scales.items())
    return [
        *with_bias(f"{ours}attention_norm", f"{theirs}ln_1", C),
        TensorMap(f"{ours}attention.query_key_value.weight", parts, (3 * C, C)),
        *with_bias(f"{ours}attention.output", f"{theirs}attn.attention.out_proj", C, C),
        *with_bias(f"{ours}mlp_norm", f"{theirs}ln_2", C),
        *with_bias(f"{ours}mlp.up", f"{theirs}mlp.c_fc", F, C),
        *with_bias(f"{ours}mlp.down", f"{theirs}mlp.c_proj", C, F),
    ]


def _windows(reader: ConfigReader, layers: int) -> tuple[int, ...]:
    """Window of each layer: `attention_types` is a list of [names, repetitions], `attention_layers` the same written out."""
    window = reader.integer("window_size", 256)
    types = reader.take("attention_types", [[["global", "local"], layers // 2]])
    kinds = reader.take("attention_layers")
    if kinds is None:
        try:
            kinds = [name for names, repetitions in types for name in list(names) * min(int(repetitions), layers)]
        except (TypeError, ValueError):
            raise reader.error("attention_types", types, "a list of [names, repetitions]") from None
    if not isinstance(kinds, list) or len(kinds) != layers or not {"global", "local"}.issuperset(map(str, kinds)):
        raise reader.error("attention_types", types, f"{layers} layers in all, each global or local")
    return tuple(window if kind == "local" else 0 for kind in kinds) if "local" in kinds else ()
