"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): LLaMA with biases on query, key and value."""

from __future__ import annotations

from typing import Any

from owngpt.families.base import ConfigReader, differences
from owngpt.families.llama_like import LlamaLike, read_windows, window_fields, window_misfits
from owngpt.model.config import GPTConfig


class Qwen2(LlamaLike):
    """Biases on query, key and value, on nothing else; some layers may have a window."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    default_context_length = 32768
    default_key_value_heads = 32

    def own_values(self, reader: ConfigReader, layers: int) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        reader.expect("use_mrope", False)
        return {"query_key_value_bias": True, "attention_windows": read_windows(reader, layers)}

    def own_fields(self, config: GPTConfig) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        return window_fields(config)

    def own_misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`LlamaLike`."""
        found = differences(config, query_key_value_bias=True, attention_output_bias=False, mlp_bias=False)
        return found + window_misfits(config)
