"""Qwen3 (arXiv 2505.09388): the native layout. What we train is saved as this, so saving is exporting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owngpt.families.base import ConfigReader, Part, TensorMap, differences, one, uniform_window
from owngpt.model.config import GPTConfig


class Qwen3:
    """RMSNorm, rotary positions, grouped queries with QK-norm, SwiGLU."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    prefix = "model."
    derived = r"rotary_emb\.inv_freq$"

    def to_config(self, values: Mapping[str, Any]) -> GPTConfig:
        """See :class:`Family`."""
        reader = ConfigReader(values, self.model_type)
        reader.expect("hidden_act", "silu", "swish")
        heads, layers = reader.integer("num_attention_heads"), reader.layers("num_hidden_layers")
        bias = reader.flag("attention_bias", False)
        config = GPTConfig(
            vocab_size=reader.integer("vocab_size"),
            context_length=reader.context_length("max_position_embeddings", 32768),
            hidden_size=reader.integer("hidden_size"),
            layers=layers,
            heads=heads,
            key_value_heads=reader.integer("num_key_value_heads", heads),
            head_size=reader.integer("head_dim", 128),
            intermediate_size=reader.integer("intermediate_size"),
            rotary_base=rotary_base(reader),
            norm_epsilon=reader.number("rms_norm_eps", 1e-6),
            query_key_value_bias=bias,
            attention_output_bias=bias,
            attention_windows=_windows(reader, layers),
            tie_embeddings=reader.flag("tie_word_embeddings", False),
            attention_dropout=reader.number("attention_dropout", 0.0),
            initializer_range=reader.number("initializer_range", 0.02),
        )
        reader.finish()
        return config

    def from_config(self, config: GPTConfig) -> dict[str, Any]:
        """See :class:`Family`."""
        window = uniform_window(config)
        kinds = ["sliding_attention" if config.window(layer) else "full_attention" for layer in range(config.layers)]
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context_length,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_value_heads,
            "head_dim": config.head_size,
            "intermediate_size": config.intermediate_size,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_epsilon,
            # Both spellings: transformers 5 reads rope_parameters, earlier releases and llama.cpp read rope_theta.
            "rope_theta": config.rotary_base,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
            "attention_bias": config.query_key_value_bias,
            "attention_dropout": config.attention_dropout,
            "use_sliding_window": bool(window),
            "sliding_window": window or None,
            "max_window_layers": config.layers,
            "layer_types": kinds,
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.initializer_range,
            "use_cache": True,
        }

    def tensors(self, config: GPTConfig) -> list[TensorMap]:
        """See :class:`Family`."""
        maps = [one("embedding.weight", "model.embed_tokens.weight", config.vocab_size, config.hidden_size)]
        for layer in range(config.layers):
            maps += _layer(config, f"blocks.{layer}.", f"model.layers.{layer}.")
        maps.append(one("final_norm.weight", "model.norm.weight", config.hidden_size))
        if not config.tie_embeddings:
            maps.append(one("output_head.weight", "lm_head.weight", config.vocab_size, config.hidden_size))
        return maps

    def misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`Family`."""
        found = differences(
            config, positions="rotary", rotary_fraction=1.0, norm="rmsnorm", norm_placement="pre", activation="swiglu",
            attention_output_bias=config.query_key_value_bias, mlp_bias=False, query_key_norm=True,
        )  # fmt: skip
        if config.attention_scale not in (None, config.head_size**-0.5):
            found.append(f"attention_scale is {config.attention_scale}")
        return found + (["layers have different windows"] if uniform_window(config) is None else [])


def _layer(config: GPTConfig, ours: str, theirs: str) -> list[TensorMap]:
    C, F, D = config.hidden_size, config.intermediate_size, config.head_size
    rows = {"q": config.heads * D, "k": config.key_value_heads * D, "v": config.key_value_heads * D}
    total = sum(rows.values())

    def joined(kind: str, *rest: int) -> TensorMap:
        parts = tuple(Part(f"{theirs}self_attn.{name}_proj.{kind}", count) for name, count in rows.items())
        return TensorMap(f"{ours}attention.query_key_value.{kind}", parts, (total, *rest))

    gate_up = tuple(Part(f"{theirs}mlp.{name}_proj.weight", F) for name in ("gate", "up"))
    maps = [
        one(f"{ours}attention_norm.weight", f"{theirs}input_layernorm.weight", C),
        joined("weight", C),
        one(f"{ours}attention.query_norm.weight", f"{theirs}self_attn.q_norm.weight", D),
        one(f"{ours}attention.key_norm.weight", f"{theirs}self_attn.k_norm.weight", D),
        one(f"{ours}attention.output.weight", f"{theirs}self_attn.o_proj.weight", C, config.heads * D),
        one(f"{ours}mlp_norm.weight", f"{theirs}post_attention_layernorm.weight", C),
        TensorMap(f"{ours}mlp.gate_up.weight", gate_up, (2 * F, C)),
        one(f"{ours}mlp.down.weight", f"{theirs}mlp.down_proj.weight", C, F),
    ]
    if config.query_key_value_bias:
        maps += [joined("bias"), one(f"{ours}attention.output.bias", f"{theirs}self_attn.o_proj.bias", C)]
    return maps


def rotary_base(reader: ConfigReader) -> float:
    """Base of the rotary frequencies from either spelling; a scaling of them is refused."""
    old = reader.number("rope_theta", 10000.0)
    reader.expect("rope_scaling", None)
    new = reader.take("rope_parameters", {})
    if not isinstance(new, dict) or new.get("rope_type", "default") != "default" or set(new) - {"rope_type", "rope_theta"}:
        raise reader.error("rope_parameters", new, '{"rope_type": "default", "rope_theta": …}')
    inner = ConfigReader(new, "rotary")
    return inner.number("rope_theta", old)


def _windows(reader: ConfigReader, layers: int) -> tuple[int, ...]:
    """Window of each layer; () when none has one."""
    sliding = reader.flag("use_sliding_window", False)
    window = reader.take("sliding_window")
    first = reader.take("max_window_layers", 28)
    kinds = reader.take("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if sliding and window and i >= first else "full_attention" for i in range(layers)]
    known = {"sliding_attention", "full_attention"}
    if not isinstance(kinds, list) or len(kinds) != layers or not known.issuperset(map(str, kinds)):
        raise reader.error("layer_types", kinds, f"a list of {layers} names, each {' or '.join(sorted(known))}")
    if "sliding_attention" not in kinds:
        return ()
    if not sliding or not isinstance(window, int) or window < 1:
        raise reader.error("sliding_window", window, "a whole number, with use_sliding_window true, for sliding layers")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
