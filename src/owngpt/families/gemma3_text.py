"""Gemma 3's text model (arXiv 2503.19786): norms on both sides of each sub-layer, local layers with their own rotary base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owngpt.families.base import ConfigReader, TensorMap, differences, one, uniform_window
from owngpt.families.llama_like import attention_tensors, gated_mlp_tensors
from owngpt.families.rotary import Rotary, read_rotary_block, rotary_misfits, scaling_fields
from owngpt.families.windows import FULL, SLIDING, layer_window_fields, read_layer_windows
from owngpt.model.config import GPTConfig

ALWAYS: dict[str, Any] = {
    "positions": "rotary",
    "rotary_fraction": 1.0,
    "norm": "rmsnorm",
    "norm_placement": "sandwich",
    "norm_weight_offset": 1.0,
    "activation": "geglu",
    "mlp_bias": False,
    "query_key_norm": True,
    "attention_sinks": False,
    "output_head_bias": False,
    "experts": 0,
}
"""What Gemma 3 always is."""
GLOBAL_BASE, LOCAL_BASE, PERIOD, WINDOW = 1_000_000.0, 10_000.0, 6, 4096
"""What absent fields mean."""


class Gemma3Text:
    """The layout of Gemma 3 without its eyes: the 270M and 1B models, and the text part of the larger ones."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    prefix = "model."
    derived = r"rotary_emb.*\.inv_freq$"

    def to_config(self, values: Mapping[str, Any]) -> GPTConfig:
        """See :class:`Family`."""
        reader = ConfigReader(values, self.model_type)
        reader.ignore("cache_implementation")
        reader.expect("hidden_activation", "gelu_pytorch_tanh")
        reader.expect("use_bidirectional_attention", False)
        for name in ("final_logit_softcapping", "attn_logit_softcapping"):
            reader.expect(name, None)
        width, size, layers = reader.integer("hidden_size"), reader.integer("head_dim", 256), reader.layers("num_hidden_layers")
        scalar = reader.integer("query_pre_attn_scalar", 256)
        bias = reader.flag("attention_bias", False)
        whole, local = _read_rotary(reader, reader.context_length("max_position_embeddings", 131_072))
        config = GPTConfig(
            vocab_size=reader.integer("vocab_size", 262_208),
            context_length=whole.context_length,
            hidden_size=width,
            layers=layers,
            heads=reader.integer("num_attention_heads", 8),
            key_value_heads=reader.integer("num_key_value_heads", 4),
            head_size=size,
            intermediate_size=reader.integer("intermediate_size"),
            rotary_base=whole.base,
            rotary_scaling=whole.scaling,
            local_rotary_base=local.base,
            norm_epsilon=reader.number("rms_norm_eps", 1e-6),
            query_key_value_bias=bias,
            attention_output_bias=bias,
            attention_windows=read_layer_windows(reader, layers, _period(reader), WINDOW),
            attention_scale=None if scalar == size else scalar**-0.5,
            embedding_scale=width**0.5,
            tie_embeddings=reader.flag("tie_word_embeddings", True),
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
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": _scalar(config),
            "rms_norm_eps": config.norm_epsilon,
            **_rotary_fields(config),
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
            maps.append(one(f"{ours}attention_output_norm.weight", f"{theirs}post_attention_layernorm.weight", C))
            maps += gated_mlp_tensors(config, ours, theirs, norm="pre_feedforward_layernorm")
            maps.append(one(f"{ours}mlp_output_norm.weight", f"{theirs}post_feedforward_layernorm.weight", C))
        maps.append(one("final_norm.weight", "model.norm.weight", C))
        if not config.tie_embeddings:
            maps.append(one("output_head.weight", "lm_head.weight", V, C))
        return maps

    def misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`Family`."""
        found = differences(
            config, **ALWAYS, attention_output_bias=config.query_key_value_bias, embedding_scale=config.hidden_size**0.5
        )
        if config.attention_scale not in (None, _scalar(config) ** -0.5):
            found.append(f"attention_scale {config.attention_scale} is not one over the root of a whole number")
        if uniform_window(config) is None:
            found.append("layers have different windows")
        if uniform_window(config) and config.local_rotary_base is None and config.rotary_scaling is not None:
            found.append("layers with a window share the rotary scaling")
        if config.hidden_size % config.heads:  # transformers insists, although head_dim is its own
            found.append(f"hidden_size {config.hidden_size} is not a multiple of heads {config.heads}")
        return found + rotary_misfits(config)


def _scalar(config: GPTConfig) -> int:
    """The number whose root the query-key products are divided by."""
    scale = config.attention_scale
    return config.head_size if scale is None or not 1e-6 < scale <= 1 else round(scale**-2)


def _period(reader: ConfigReader) -> int:
    """Of layers that see everything, where `layer_types` does not name them. Newer files have it with an underscore too, which
    transformers writes and does not read back: where both are there, the plain one holds."""
    return reader.integer("sliding_window_pattern", reader.integer("_sliding_window_pattern", PERIOD))


def _read_rotary(reader: ConfigReader, length: int) -> tuple[Rotary, Rotary]:
    """Rotary positions of the layers that see everything, and of those with a window, from either spelling."""
    whole_base, local_base = reader.number("rope_theta", GLOBAL_BASE), reader.number("rope_local_base_freq", LOCAL_BASE)
    blocks, old = reader.take("rope_parameters", {}), reader.take("rope_scaling")
    if not isinstance(blocks, Mapping) or not {FULL, SLIDING}.issuperset(blocks):
        raise reader.error("rope_parameters", blocks, f"an object with {FULL} and {SLIDING}")
    whole = read_rotary_block(reader, f"rope_parameters {FULL}", blocks.get(FULL) or {}, length, base=whole_base)
    local = read_rotary_block(reader, f"rope_parameters {SLIDING}", blocks.get(SLIDING) or {}, length, base=local_base)
    if old is not None:
        scaled = read_rotary_block(reader, "rope_scaling", old, length, base=whole.base)
        if whole.scaling is not None and scaled != whole:
            raise reader.error("rope_scaling", old, "what rope_parameters says, or absent")
        whole = scaled
    for rotary in (whole, local):
        if rotary.fraction != 1.0 or (rotary is local and local.scaling is not None):
            raise reader.error("rope_parameters", blocks, f"a rotation of whole heads, unscaled for {SLIDING}")
    return whole, local


def _rotary_fields(config: GPTConfig) -> dict[str, Any]:
    """Both spellings of the two rotations."""
    local = config.rotary_base if config.local_rotary_base is None else config.local_rotary_base
    scaling = {"rope_type": "default"} if config.rotary_scaling is None else scaling_fields(config.rotary_scaling)
    dynamic = config.rotary_scaling if config.rotary_scaling is not None and config.rotary_scaling.kind == "dynamic" else None
    return {
        "max_position_embeddings": config.context_length if dynamic is None else dynamic.original_context_length,
        "rope_theta": config.rotary_base,
        "rope_local_base_freq": local,
        "rope_scaling": None if config.rotary_scaling is None else scaling,
        "rope_parameters": {
            FULL: {**scaling, "rope_theta": config.rotary_base},
            SLIDING: {"rope_type": "default", "rope_theta": local},
        },
    }
