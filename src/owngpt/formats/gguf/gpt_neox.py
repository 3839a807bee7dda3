"""gptneox in GGUF (Pythia, arXiv 2304.01373): query, key and value of all heads one after the other, not head by head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from owngpt.formats.gguf.layout import Config, Pairing, regrouped, same
from owngpt.formats.gguf.metadata import Metadata
from owngpt.formats.gguf.rotary import rotary_block


class GPTNeoX:
    """GPT-NeoX and Pythia; the head is always a matrix of its own."""

    name = "gptneox"
    model_types: tuple[str, ...] = ("gpt_neox",)
    always_has_head = True

    def config(self, metadata: Metadata) -> dict[str, Any]:
        """See :class:`Architecture`."""
        width, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
        rotated = metadata.integer("rope.dimension_count", max(width // heads, 1))
        found = {
            "model_type": "gpt_neox",
            "vocab_size": metadata.rows("token_embd.weight"),
            "max_position_embeddings": metadata.integer("context_length"),
            "hidden_size": width,
            "num_hidden_layers": metadata.layers(),
            "num_attention_heads": heads,
            "intermediate_size": metadata.integer("feed_forward_length"),
            "layer_norm_eps": metadata.number("attention.layer_norm_epsilon"),
            "hidden_act": "gelu",
            "attention_bias": True,
            "rotary_pct": rotated * heads / width,
            "rotary_emb_base": metadata.number("rope.freq_base", 10000.0),
            "use_parallel_residual": metadata.flag("use_parallel_residual", True),
            "tie_word_embeddings": not metadata.has_own_head,
        }
        metadata.finish()
        return found

    def keys(self, config: Config) -> dict[str, Any]:
        """See :class:`Architecture`."""
        block = rotary_block(config)
        return {
            "block_count": config["num_hidden_layers"],
            "context_length": config["max_position_embeddings"],
            "embedding_length": config["hidden_size"],
            "feed_forward_length": config["intermediate_size"],
            "attention.head_count": config["num_attention_heads"],
            "attention.layer_norm_epsilon": float(config["layer_norm_eps"]),
            "rope.dimension_count": _rotated(config),
            "rope.freq_base": float(config.get("rotary_emb_base", block["rope_theta"])),
            "use_parallel_residual": bool(config.get("use_parallel_residual", True)),
        }

    def constants(self, config: Config) -> dict[str, Tensor]:
        """See :class:`Architecture`."""
        return {}

    def misfits(self, config: Config) -> list[str]:
        """See :class:`Architecture`."""
        activation, kind = config["hidden_act"], rotary_block(config)["rope_type"]
        found = [] if activation in ("gelu", "gelu_new") else [f"its activation is {activation}; llama.cpp's gptneox uses gelu"]
        found += [] if config.get("attention_bias", True) else ["its attention has no biases"]
        return found + ([] if kind == "default" else [f"its rotary scaling is {kind}, which llama.cpp's gptneox lacks"])

    def pairings(self, config: Config) -> list[Pairing]:
        """See :class:`Architecture`."""
        heads = config["num_attention_heads"]
        pairs = same("gpt_neox.embed_in", "token_embd")
        for layer in range(config["num_hidden_layers"]):
            theirs, stored = f"gpt_neox.layers.{layer}.", f"blk.{layer}."
            pairs += [
                regrouped(f"{theirs}attention.query_key_value.{kind}", f"{stored}attn_qkv.{kind}", 1, heads, 3)
                for kind in ("weight", "bias")
            ]
            for name, place in (
                ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"), ("attention.dense", "attn_output"),
                ("mlp.dense_h_to_4h", "ffn_up"), ("mlp.dense_4h_to_h", "ffn_down"),
            ):  # fmt: skip
                pairs += same(theirs + name, stored + place, "weight", "bias")
        return pairs + same("gpt_neox.final_layer_norm", "output_norm", "weight", "bias") + same("embed_out", "output")


def _rotated(config: Config) -> int:
    block = rotary_block(config)
    fraction = config.get("rotary_pct", block.get("partial_rotary_factor", 0.25))
    return int(config["hidden_size"] // config["num_attention_heads"] * fraction)
