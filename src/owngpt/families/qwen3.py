"""Qwen3 (arXiv 2505.09388): the native layout. What we train is saved as this, so saving is exporting."""

from __future__ import annotations

from typing import Any

from owngpt.families.base import ConfigReader, differences
from owngpt.families.llama_like import LlamaLike, read_windows, window_fields, window_misfits
from owngpt.model.config import GPTConfig


class Qwen3(LlamaLike):
    """QK-norm; biases on all four attention matrices or on none; some layers may have a window."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    default_context_length = 32768
    default_key_value_heads = 32
    default_head_size = 128
    query_key_norm = True

    def own_values(self, reader: ConfigReader, layers: int) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        bias = reader.flag("attention_bias", False)
        windows = read_windows(reader, layers)
        return {"query_key_value_bias": bias, "attention_output_bias": bias, "attention_windows": windows}

    def own_fields(self, config: GPTConfig) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        return {"attention_bias": config.query_key_value_bias, **window_fields(config)}

    def own_misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`LlamaLike`."""
        found = differences(config, attention_output_bias=config.query_key_value_bias, mlp_bias=False)
        return found + window_misfits(config)
