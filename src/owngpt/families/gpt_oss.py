"""gpt-oss (OpenAI 2025, arXiv 2508.10925): a mixture of experts with attention sinks, alternating windows and YaRN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from owngpt.families.base import ConfigReader, TensorMap, differences, one, uniform_window
from owngpt.families.llama_like import attention_tensors
from owngpt.families.rotary import Rotary, read_rotary, rotary_fields, rotary_misfits
from owngpt.families.windows import layer_window_fields, read_layer_windows
from owngpt.kernels.activation import CLAMP, CLAMPED_SLOPE
from owngpt.model.config import GPTConfig

ALWAYS: dict[str, Any] = {
    "positions": "rotary",
    "rotary_fraction": 1.0,
    "local_rotary_base": None,
    "norm": "rmsnorm",
    "norm_placement": "pre",
    "norm_weight_offset": 0.0,
    "parallel_residual": False,
    "activation": "swiglu_clamped",
    "mlp_bias": True,
    "query_key_norm": False,
    "attention_sinks": True,
    "embedding_scale": 1.0,
    "output_head_bias": False,
}
"""What gpt-oss always is."""
BASE, WINDOW = 150_000.0, 128
YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""What an absent scaling means: not none, but this one."""


class GPTOSS:
    """The layout of gpt-oss-20b and 120b. Its experts are published in MXFP4, which :mod:`owngpt.formats.mxfp4` reads."""

    model_type = "gpt_oss"
    architecture = "GptOssForCausalLM"
    prefix = "model."
    derived = r"rotary_emb\.inv_freq$"

    def to_config(self, values: Mapping[str, Any]) -> GPTConfig:
        """See :class:`Family`."""
        reader = ConfigReader(values, self.model_type)
        reader.ignore("router_aux_loss_coef", "output_router_logits", "initial_context_length")
        reader.expect("hidden_act", "silu")
        reader.expect("swiglu_limit", CLAMP)
        reader.expect("swiglu_alpha", CLAMPED_SLOPE)
        _check_quantization(reader)
        layers, bias = reader.layers("num_hidden_layers"), reader.flag("attention_bias", True)
        rotary = _read_rotary(reader, values)
        config = GPTConfig(
            vocab_size=reader.integer("vocab_size", 201_088),
            context_length=rotary.context_length,
            hidden_size=reader.integer("hidden_size"),
            layers=layers,
            heads=reader.integer("num_attention_heads", 64),
            key_value_heads=reader.integer("num_key_value_heads", 8),
            head_size=reader.integer("head_dim", 64),
            intermediate_size=reader.integer("intermediate_size"),
            rotary_base=rotary.base,
            rotary_scaling=rotary.scaling,
            norm_epsilon=reader.number("rms_norm_eps", 1e-5),
            experts=reader.integer("num_local_experts", 128),
            experts_per_token=_experts_per_token(reader),
            query_key_value_bias=bias,
            attention_output_bias=bias,
            attention_windows=read_layer_windows(reader, layers, 2, WINDOW),
            tie_embeddings=reader.flag("tie_word_embeddings", False),
            attention_dropout=reader.number("attention_dropout", 0.0),
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
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_value_heads,
            "head_dim": config.head_size,
            "intermediate_size": config.intermediate_size,
            "num_local_experts": config.experts,
            "num_experts_per_tok": config.experts_per_token,
            "experts_per_token": config.experts_per_token,
            "hidden_act": "silu",
            "swiglu_limit": CLAMP,
            "swiglu_alpha": CLAMPED_SLOPE,
            "rms_norm_eps": config.norm_epsilon,
            **rotary_fields(config),
            **layer_window_fields(config, WINDOW),
            "attention_bias": config.query_key_value_bias,
            "attention_dropout": config.attention_dropout,
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.initializer_range,
            "use_cache": True,
        }

    def tensors(self, config: GPTConfig) -> list[TensorMap]:
        """See :class:`Family`."""
        V, C = config.vocab_size, config.hidden_size
        maps = [one("embedding.weight", "model.embed_tokens.weight", V, C)]
        for layer in range(config.layers):
            ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
            maps += attention_tensors(config, ours, theirs)
            maps.append(one(f"{ours}attention.sinks", f"{theirs}self_attn.sinks", config.heads))
            maps += _expert_tensors(config, ours, theirs)
        maps.append(one("final_norm.weight", "model.norm.weight", C))
        if not config.tie_embeddings:
            maps.append(one("output_head.weight", "lm_head.weight", V, C))
        return maps

    def misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`Family`."""
        found = differences(config, **ALWAYS, attention_output_bias=config.query_key_value_bias)
        if not config.experts:
            found.append("it has no experts")
        if config.attention_scale not in (None, config.head_size**-0.5):
            found.append(f"attention_scale is {config.attention_scale}")
        if uniform_window(config) is None:
            found.append("layers have different windows")
        return found + rotary_misfits(config)


def _expert_tensors(config: GPTConfig, ours: str, theirs: str) -> list[TensorMap]:
    """The norm before it, the router and the experts of one layer, whose gate and up rows alternate there."""
    C, F, E = config.hidden_size, config.intermediate_size, config.experts
    experts = f"{theirs}mlp.experts."
    return [
        one(f"{ours}mlp_norm.weight", f"{theirs}post_attention_layernorm.weight", C),
        one(f"{ours}mlp.router.weight", f"{theirs}mlp.router.weight", E, C),
        one(f"{ours}mlp.router.bias", f"{theirs}mlp.router.bias", E),
        one(f"{ours}mlp.gate_up.weight", f"{experts}gate_up_proj", E, 2 * F, C, transposed=True, order=_gate_first, dimension=1),
        one(f"{ours}mlp.gate_up.bias", f"{experts}gate_up_proj_bias", E, 2 * F, order=_gate_first, dimension=1),
        one(f"{ours}mlp.down.weight", f"{experts}down_proj", E, C, F, transposed=True),
        one(f"{ours}mlp.down.bias", f"{experts}down_proj_bias", E, C),
    ]


def _gate_first(rows: int) -> Tensor:
    """All gate rows, then all up rows, out of rows that alternate."""
    return torch.cat((torch.arange(0, rows, 2), torch.arange(1, rows, 2)))


def _experts_per_token(reader: ConfigReader) -> int:
    """Older files say it twice."""
    first = reader.integer("num_experts_per_tok", reader.integer("experts_per_token", 4))
    reader.expect("experts_per_token", first)
    return first


def _read_rotary(reader: ConfigReader, values: Mapping[str, Any]) -> Rotary:
    length = reader.context_length("max_position_embeddings", 131_072)
    if values.get("rope_parameters") is None and values.get("rope_scaling") is None:
        base = reader.number("rope_theta", BASE)
        given = ConfigReader({"rope_parameters": YARN}, reader.model_type)
        reader.ignore("rope_parameters", "rope_scaling")
        return read_rotary(given, length, base=base)
    return read_rotary(reader, length, base=BASE)


def _check_quantization(reader: ConfigReader) -> None:
    """MXFP4 is read; what is written is not quantized."""
    settings = reader.take("quantization_config", {})
    method = settings.get("quant_method", "mxfp4") if isinstance(settings, Mapping) else settings
    if method != "mxfp4":
        raise reader.error("quantization_config", settings, "of quant_method mxfp4, or absent")
