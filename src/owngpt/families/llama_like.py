"""What LLaMA (arXiv 2302.13971) and its descendants share: RMSNorm before each sub-layer, rotary positions, grouped queries,
SwiGLU. They differ in their biases, their windows and in whether queries and keys are normed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owngpt.families.base import ConfigReader, Part, TensorMap, differences, one, uniform_window
from owngpt.families.rotary import read_rotary, rotary_fields, rotary_misfits
from owngpt.model.config import GPTConfig

PLAIN: dict[str, Any] = {
    "positions": "rotary",
    "rotary_fraction": 1.0,
    "local_rotary_base": None,
    "norm": "rmsnorm",
    "norm_placement": "pre",
    "norm_weight_offset": 0.0,
    "parallel_residual": False,
    "activation": "swiglu",
    "experts": 0,
    "attention_sinks": False,
    "embedding_scale": 1.0,
    "output_head_bias": False,
}
"""What all of them always are."""


class LlamaLike:
    """The common layout; a subclass reads and writes the fields that are its own."""

    model_type: str
    architecture: str
    prefix = "model."
    derived = r"rotary_emb\.inv_freq$"
    default_context_length: int
    default_key_value_heads: int | None = None
    """What an absent field means; a null is one key-value head for each query head, for all of them."""
    default_head_size: int | None = None
    """What an absent or null field means; None is hidden_size / heads."""
    query_key_norm = False

    def own_values(self, reader: ConfigReader, layers: int) -> dict[str, Any]:
        """The family's own fields of a config.json, as fields of :class:`GPTConfig`."""
        raise NotImplementedError

    def own_fields(self, config: GPTConfig) -> dict[str, Any]:
        """The inverse of :meth:`own_values`."""
        raise NotImplementedError

    def own_misfits(self, config: GPTConfig) -> list[str]:
        """What of a configuration the family's own fields cannot say."""
        raise NotImplementedError

    def to_config(self, values: Mapping[str, Any]) -> GPTConfig:
        """See :class:`Family`."""
        reader = ConfigReader(values, self.model_type)
        reader.expect("hidden_act", "silu", "swish")
        width, heads, layers = (
            reader.integer("hidden_size"), reader.integer("num_attention_heads"), reader.layers("num_hidden_layers"),
        )  # fmt: skip
        rotary = read_rotary(reader, reader.context_length("max_position_embeddings", self.default_context_length))
        if rotary.fraction != 1.0:
            raise reader.error("partial_rotary_factor", rotary.fraction, "1.0")
        config = GPTConfig(
            vocab_size=reader.integer("vocab_size"),
            context_length=rotary.context_length,
            hidden_size=width,
            layers=layers,
            heads=heads,
            key_value_heads=self._key_value_heads(reader, heads),
            head_size=self._head_size(reader, width, heads),
            intermediate_size=reader.integer("intermediate_size"),
            rotary_base=rotary.base,
            rotary_scaling=rotary.scaling,
            norm_epsilon=reader.number("rms_norm_eps", 1e-6),
            query_key_norm=self.query_key_norm,
            tie_embeddings=reader.flag("tie_word_embeddings", False),
            attention_dropout=reader.number("attention_dropout", 0.0),
            initializer_range=reader.number("initializer_range", 0.02),
            **self.own_values(reader, layers),
        )
        reader.finish()
        return config

    def _key_value_heads(self, reader: ConfigReader, heads: int) -> int:
        default = heads if reader.has("num_key_value_heads") else self.default_key_value_heads
        return reader.integer("num_key_value_heads", default or heads)

    def _head_size(self, reader: ConfigReader, width: int, heads: int) -> int:
        if reader.take("head_dim") is None and self.default_head_size is None and width % heads:
            raise reader.error("num_attention_heads", heads, f"a divisor of hidden_size {width}, since head_dim is not given")
        return reader.integer("head_dim", self.default_head_size or width // heads)

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
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_epsilon,
            **rotary_fields(config),
            "attention_dropout": config.attention_dropout,
            **self.own_fields(config),
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.initializer_range,
            "use_cache": True,
        }

    def tensors(self, config: GPTConfig) -> list[TensorMap]:
        """See :class:`Family`."""
        maps = [one("embedding.weight", "model.embed_tokens.weight", config.vocab_size, config.hidden_size)]
        for layer in range(config.layers):
            maps += attention_tensors(config, f"blocks.{layer}.", f"model.layers.{layer}.")
            maps += gated_mlp_tensors(config, f"blocks.{layer}.", f"model.layers.{layer}.")
        maps.append(one("final_norm.weight", "model.norm.weight", config.hidden_size))
        if not config.tie_embeddings:
            maps.append(one("output_head.weight", "lm_head.weight", config.vocab_size, config.hidden_size))
        return maps

    def misfits(self, config: GPTConfig) -> list[str]:
        """See :class:`Family`."""
        found = differences(config, **PLAIN, query_key_norm=self.query_key_norm)
        if config.attention_scale not in (None, config.head_size**-0.5):
            found.append(f"attention_scale is {config.attention_scale}")
        return found + rotary_misfits(config) + self.own_misfits(config)


def attention_tensors(config: GPTConfig, ours: str, theirs: str) -> list[TensorMap]:
    """The norm before it, and the attention of one layer; query, key and value are one matrix here and three there."""
    C, D = config.hidden_size, config.head_size
    maps = [
        one(f"{ours}attention_norm.weight", f"{theirs}input_layernorm.weight", C),
        _query_key_value(config, ours, theirs, "weight", C),
    ]
    if config.query_key_value_bias:
        maps.append(_query_key_value(config, ours, theirs, "bias"))
    if config.query_key_norm:
        maps += [one(f"{ours}attention.{name}_norm.weight", f"{theirs}self_attn.{name[0]}_norm.weight", D)
                 for name in ("query", "key")]  # fmt: skip
    maps.append(one(f"{ours}attention.output.weight", f"{theirs}self_attn.o_proj.weight", C, config.heads * D))
    if config.attention_output_bias:
        maps.append(one(f"{ours}attention.output.bias", f"{theirs}self_attn.o_proj.bias", C))
    return maps


def _query_key_value(config: GPTConfig, ours: str, theirs: str, kind: str, *rest: int) -> TensorMap:
    heads = {"q": config.heads, "k": config.key_value_heads, "v": config.key_value_heads}
    parts = tuple(Part(f"{theirs}self_attn.{name}_proj.{kind}", count * config.head_size) for name, count in heads.items())
    return TensorMap(f"{ours}attention.query_key_value.{kind}", parts, (sum(part.rows for part in parts), *rest))


def gated_mlp_tensors(config: GPTConfig, ours: str, theirs: str, norm: str = "post_attention_layernorm") -> list[TensorMap]:
    """The norm before it, and the gated feed-forward layer of one layer; gate and up are one matrix here and two there."""
    C, F = config.hidden_size, config.intermediate_size

    def gate_up(kind: str, *rest: int) -> TensorMap:
        parts = tuple(Part(f"{theirs}mlp.{name}_proj.{kind}", F) for name in ("gate", "up"))
        return TensorMap(f"{ours}mlp.gate_up.{kind}", parts, (2 * F, *rest))

    maps = [
        one(f"{ours}mlp_norm.weight", f"{theirs}{norm}.weight", C),
        gate_up("weight", C),
        one(f"{ours}mlp.down.weight", f"{theirs}mlp.down_proj.weight", C, F),
    ]
    if config.mlp_bias:
        maps += [gate_up("bias"), one(f"{ours}mlp.down.bias", f"{theirs}mlp.down_proj.bias", C)]
    return maps


def read_windows(reader: ConfigReader, layers: int) -> tuple[int, ...]:
    """Qwen's window of each layer, from `layer_types` or, in older files, `max_window_layers`; () when none has one."""
    sliding = reader.flag("use_sliding_window", False)
    window = reader.take("sliding_window", None if reader.has("sliding_window") else 4096)
    first = reader.take("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int):
        raise reader.error("max_window_layers", first, "a whole number")
    kinds = reader.take("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if sliding and window and i >= first else "full_attention" for i in range(layers)]
    known = {"sliding_attention", "full_attention"}
    if not isinstance(kinds, list) or len(kinds) != layers or not known.issuperset(map(str, kinds)):
        raise reader.error("layer_types", _shortened(kinds), f"a list of {layers} names, each {' or '.join(sorted(known))}")
    if "sliding_attention" not in kinds:
        return ()
    if not sliding:
        raise reader.error("use_sliding_window", sliding, "true where layer_types has sliding layers")
    width = reader.integer("sliding_window", window)
    return tuple(width if kind == "sliding_attention" else 0 for kind in kinds)


def _shortened(value: Any) -> Any:
    return f"a list of {len(value)}" if isinstance(value, list) else value


def window_fields(config: GPTConfig) -> dict[str, Any]:
    """The inverse of :func:`read_windows`."""
    window = uniform_window(config)
    kinds = ["sliding_attention" if config.window(layer) else "full_attention" for layer in range(config.layers)]
    first = next((layer for layer in range(config.layers) if config.window(layer)), config.layers)
    return {
        "use_sliding_window": bool(window), "sliding_window": window or None, "max_window_layers": first, "layer_types": kinds,
    }  # fmt: skip


def window_misfits(config: GPTConfig) -> list[str]:
    """What of a configuration's windows :func:`window_fields` cannot say."""
    return ["layers have different windows"] if uniform_window(config) is None else []
