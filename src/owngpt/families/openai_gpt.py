"""GPT-1 (Radford et al. 2018): GPT-2's parts with the norm after each sum, and no final norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owngpt.families.base import ConfigReader, TensorMap, one, uniform_window
from owngpt.families.gpt2 import CLASSIC, SUMMARY_FIELDS, classic_misfits, conv1d_layer, head_split
from owngpt.model.config import GPTConfig

ACTIVATIONS = {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
"""In this family's files "gelu" has always meant the tanh form."""
ACTIVATION_NAMES = {"gelu_tanh": "gelu", "relu": "relu", "silu": "silu"}
POST_NORM = {**CLASSIC, "norm_placement": "post"}


class OpenAIGPT:
    """The layout of GPT-1."""

    model_type = "openai-gpt"
    architecture = "OpenAIGPTLMHeadModel"
    prefix = "transformer."
    derived = r"\.attn\.bias$|position_ids$"

    def to_config(self, values: Mapping[str, Any]) -> GPTConfig:
        """See :class:`Family`."""
        reader = ConfigReader(values, self.model_type)
        reader.ignore("n_ctx", "embd_pdrop", "n_special", "predict_special_tokens", *SUMMARY_FIELDS)
        width, heads = head_split(reader, "n_embd", "n_head")
        config = GPTConfig(
            vocab_size=reader.integer("vocab_size", 40478),
            context_length=reader.context_length("n_positions", 512),
            hidden_size=width,
            layers=reader.layers("n_layer"),
            heads=heads,
            key_value_heads=heads,
            head_size=width // heads,
            intermediate_size=4 * width,
            norm_epsilon=reader.number("layer_norm_epsilon", 1e-5),
            activation=reader.choice("afn", "gelu", ACTIVATIONS),
            tie_embeddings=reader.flag("tie_word_embeddings", True),
            dropout=reader.number("resid_pdrop", 0.1),
            attention_dropout=reader.number("attn_pdrop", 0.1),
            initializer_range=reader.number("initializer_range", 0.02),
            **POST_NORM,
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
            "afn": ACTIVATION_NAMES[config.activation],
            "layer_norm_epsilon": config.norm_epsilon,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.attention_dropout,
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.initializer_range,
        }

    def tensors(self, config: GPTConfig) -> list[TensorMap]:
        """See :class:`Family`."""
        C = config.hidden_size
        maps = [
            one("embedding.weight", "transformer.tokens_embed.weight", config.vocab_size, C),
            one("position_embedding.weight", "transformer.positions_embed.weight", config.context_length, C),
        ]
        for layer in range(config.layers):
            maps += conv1d_layer(config, f"blocks.{layer}.", f"transformer.h.{layer}.")
        if not config.tie_embeddings:
            maps.append(one("output_head.weight", "lm_head.weight", config.vocab_size, C))
        return maps

    def misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`Family`."""
        found = classic_misfits(config, {**POST_NORM, "intermediate_size": 4 * config.hidden_size, "attention_scale": None})
        if config.activation not in ACTIVATION_NAMES:
            found.append(f"activation is {config.activation!r}")
        return found + (["it has attention windows"] if uniform_window(config) != 0 else [])
