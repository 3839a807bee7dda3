"""Mistral (arXiv 2310.06825): LLaMA with one attention window in every layer, or, in later releases, in none."""

from __future__ import annotations

from typing import Any

from owngpt.families.base import ConfigReader, differences
from owngpt.families.llama_like import LlamaLike
from owngpt.model.config import GPTConfig


class Mistral(LlamaLike):
    """No biases; the same window everywhere."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    default_context_length = 131072
    default_key_value_heads = 8

    def own_values(self, reader: ConfigReader, layers: int) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        reader.expect("attention_bias", False)
        reader.expect("mlp_bias", False)
        unlimited = reader.has("sliding_window") and reader.take("sliding_window") is None
        return {"attention_windows": () if unlimited else (reader.integer("sliding_window", 4096),) * layers}

    def own_fields(self, config: GPTConfig) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        return {"sliding_window": config.window(0) or None}

    def own_misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`LlamaLike`."""
        found = differences(config, query_key_value_bias=False, attention_output_bias=False, mlp_bias=False)
        return found + (["layers have different windows"] if len(set(config.attention_windows)) > 1 else [])
