"""llama, qwen2 and qwen3 in GGUF: RMSNorm, rotary positions, grouped queries, SwiGLU.

The file for "llama" holds LLaMA, Llama 2 and 3, SmolLM2 and Mistral; llama.cpp rotates neighbouring pairs there, so that the
rows of query and key heads are stored in that order (its convert_hf_to_gguf.py, `permute`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from owngpt.formats.gguf.layout import Config, Pairing, exact_context, regrouped, same
from owngpt.formats.gguf.metadata import Metadata
from owngpt.formats.gguf.rotary import divisors, read_rotary, rotary_keys, rotary_misfits


class LlamaLike:
    """What they share; a subclass reads and writes what is its own."""

    name: str
    model_types: tuple[str, ...]
    norm_pairs: tuple[tuple[str, str], ...] = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"))
    """Names of the norms of a layer, theirs and the file's."""
    always_has_head = False
    paired_rotation = False
    """Whether the file's query and key heads are rotated in neighbouring pairs."""

    def own_config(self, metadata: Metadata) -> dict[str, Any]:
        """The fields of config.json that only this architecture has, model_type among them."""
        raise NotImplementedError

    def own_keys(self, config: Config) -> dict[str, Any]:
        """The keys that only this architecture has."""
        return {}

    def own_misfits(self, config: Config) -> list[str]:
        """What only this architecture cannot say."""
        return []

    def config(self, metadata: Metadata) -> dict[str, Any]:
        """See :class:`Architecture`."""
        own = self.own_config(metadata)
        found = {**self._shape(metadata), **own}
        metadata.finish()
        return found

    def _shape(self, metadata: Metadata) -> dict[str, Any]:
        width, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
        head_size = metadata.integer("attention.key_length", max(width // heads, 1))
        rotated = metadata.integer("rope.dimension_count", head_size)
        if rotated != head_size:
            raise metadata.error("rope.dimension_count", rotated, f"the size of a head, {head_size}")
        context_length = metadata.integer("context_length")
        return {
            "vocab_size": metadata.rows("token_embd.weight"),
            "max_position_embeddings": context_length,
            "hidden_size": width,
            "num_hidden_layers": metadata.layers(),
            "num_attention_heads": heads,
            "num_key_value_heads": metadata.integer("attention.head_count_kv", heads),
            "head_dim": head_size,
            "intermediate_size": metadata.integer("feed_forward_length"),
            "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
            **read_rotary(metadata, context_length, rotated),
            "tie_word_embeddings": not metadata.has_own_head,
        }

    def keys(self, config: Config) -> dict[str, Any]:
        """See :class:`Architecture`."""
        return {
            "block_count": config["num_hidden_layers"],
            "context_length": exact_context(config),
            "embedding_length": config["hidden_size"],
            "feed_forward_length": config["intermediate_size"],
            "attention.head_count": config["num_attention_heads"],
            "attention.head_count_kv": config["num_key_value_heads"],
            "attention.key_length": config["head_dim"],
            "attention.value_length": config["head_dim"],
            "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "vocab_size": config["vocab_size"],
            "rope.dimension_count": config["head_dim"],
            **rotary_keys(config),
            **self.own_keys(config),
        }

    def constants(self, config: Config) -> dict[str, Tensor]:
        """See :class:`Architecture`."""
        return divisors(config, config["head_dim"])

    def misfits(self, config: Config) -> list[str]:
        """See :class:`Architecture`."""
        return rotary_misfits(config) + self.own_misfits(config)

    def pairings(self, config: Config) -> list[Pairing]:
        """See :class:`Architecture`."""
        pairs = same("model.embed_tokens", "token_embd")
        for layer in range(config["num_hidden_layers"]):
            pairs += self.layer(config, f"model.layers.{layer}.", f"blk.{layer}.")
        return pairs + self.norm("model.norm", "output_norm") + same("lm_head", "output")

    def layer(self, config: Config, theirs: str, stored: str) -> list[Pairing]:
        """The tensors of one layer."""
        pairs = [pair for norm, name in self.norm_pairs for pair in self.norm(theirs + norm, stored + name)]
        heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
        for letter, count in heads.items():
            for kind in ("weight", "bias"):
                name, place = f"{theirs}self_attn.{letter}_proj.{kind}", f"{stored}attn_{letter}.{kind}"
                half = config["head_dim"] // 2
                pairs.append(regrouped(name, place, count, 2, half) if self.paired_rotation else Pairing(name, (place,)))
            pairs += self.norm(f"{theirs}self_attn.{letter}_norm", f"{stored}attn_{letter}_norm")
        pairs += same(f"{theirs}self_attn.v_proj", f"{stored}attn_v", "weight", "bias")
        pairs += same(f"{theirs}self_attn.o_proj", f"{stored}attn_output", "weight", "bias")
        return pairs + self.feed_forward(theirs, stored)

    def feed_forward(self, theirs: str, stored: str) -> list[Pairing]:
        """The feed-forward layer of one layer."""
        names = ("gate", "up", "down")
        return [pair for name in names for pair in same(f"{theirs}mlp.{name}_proj", f"{stored}ffn_{name}", "weight", "bias")]

    def norm(self, theirs: str, stored: str) -> list[Pairing]:
        """The weight of a norm."""
        return same(theirs, stored)


class Llama(LlamaLike):
    """LLaMA, and Mistral where the file names an attention window."""

    name = "llama"
    model_types: tuple[str, ...] = ("llama", "mistral")
    paired_rotation = True

    def own_config(self, metadata: Metadata) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        window = metadata.take("attention.sliding_window")
        if window:
            return {"model_type": "mistral", "sliding_window": metadata.integer("attention.sliding_window")}
        bias = {name: f"blk.0.{tensor}.bias" in metadata.tensors for name, tensor in (("attention", "attn_q"), ("mlp", "ffn_up"))}
        return {"model_type": "llama", "attention_bias": bias["attention"], "mlp_bias": bias["mlp"]}

    def own_keys(self, config: Config) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        window = config.get("sliding_window")
        return {"attention.sliding_window": window} if window else {}


class Qwen2(LlamaLike):
    """Biases on query, key and value."""

    name = "qwen2"
    model_types: tuple[str, ...] = ("qwen2",)

    def own_config(self, metadata: Metadata) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        return {"model_type": "qwen2"}


class Qwen3(LlamaLike):
    """A norm on each query and key head: the native layout."""

    name = "qwen3"
    model_types: tuple[str, ...] = ("qwen3",)

    def own_config(self, metadata: Metadata) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        return {"model_type": "qwen3", "attention_bias": "blk.0.attn_q.bias" in metadata.tensors}

    def own_misfits(self, config: Config) -> list[str]:
        """See :class:`LlamaLike`."""
        return ["llama.cpp's qwen3 has no biases on its attention"] if config.get("attention_bias") else []
