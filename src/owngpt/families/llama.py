"""LLaMA (arXiv 2302.13971), Llama 2 and 3, SmolLM2, TinyLlama and many more."""

from __future__ import annotations

from typing import Any

from owngpt.families.base import ConfigReader, uniform_window
from owngpt.families.llama_like import LlamaLike
from owngpt.model.config import GPTConfig


class Llama(LlamaLike):
    """Biases on all four attention matrices or on none, and on the feed-forward layer or not; no windows."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    default_context_length = 2048

    def own_values(self, reader: ConfigReader, layers: int) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        reader.expect("pretraining_tp", 1)
        reader.expect("rope_interleaved", False)  # nanotron's files, SmolLM among them, say it
        reader.ignore("is_llama_config", "max_sequence_length")
        bias = reader.flag("attention_bias", False)
        return {
            "query_key_value_bias": bias, "attention_output_bias": bias, "mlp_bias": reader.flag("mlp_bias", False),
        }  # fmt: skip

    def own_fields(self, config: GPTConfig) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        return {"attention_bias": config.query_key_value_bias, "mlp_bias": config.mlp_bias, "pretraining_tp": 1}

    def own_misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`LlamaLike`."""
        found = (
            [] if config.attention_output_bias == config.query_key_value_bias else ["only some of its projections have biases"]
        )
        if config.hidden_size % config.heads:  # transformers asks for it, whatever head_dim says
            found.append(f"hidden_size {config.hidden_size} is not a multiple of heads {config.heads}")
        return found + (["it has attention windows"] if uniform_window(config) != 0 else [])
