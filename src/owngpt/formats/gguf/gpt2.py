"""gpt2 in GGUF: learned positions, LayerNorm, biases everywhere; matrices are (out, in), unlike in a Hugging Face folder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from owngpt.formats.gguf.layout import Config, Pairing, same, transposed
from owngpt.formats.gguf.metadata import Metadata


class GPT2:
    """GPT-2 and its kin."""

    name = "gpt2"
    model_types: tuple[str, ...] = ("gpt2",)
    always_has_head = False

    def config(self, metadata: Metadata) -> dict[str, Any]:
        """See :class:`Architecture`."""
        found = {
            "model_type": "gpt2",
            "vocab_size": metadata.rows("token_embd.weight"),
            "n_positions": metadata.integer("context_length"),
            "n_embd": metadata.integer("embedding_length"),
            "n_layer": metadata.layers(),
            "n_head": metadata.integer("attention.head_count"),
            "n_inner": metadata.integer("feed_forward_length"),
            "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
            "activation_function": "gelu_new",
            "tie_word_embeddings": not metadata.has_own_head,
        }
        metadata.finish()
        return found

    def keys(self, config: Config) -> dict[str, Any]:
        """See :class:`Architecture`."""
        return {
            "block_count": config["n_layer"],
            "context_length": config["n_positions"],
            "embedding_length": config["n_embd"],
            "feed_forward_length": config["n_inner"],
            "attention.head_count": config["n_head"],
            "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        }

    def constants(self, config: Config) -> dict[str, Tensor]:
        """See :class:`Architecture`."""
        return {}

    def misfits(self, config: Config) -> list[str]:
        """See :class:`Architecture`."""
        activation = config["activation_function"]
        found = [] if activation == "gelu_new" else [f"its activation is {activation}; llama.cpp's gpt2 uses gelu_new"]
        return found + ([] if config.get("scale_attn_weights", True) else ["its attention is not scaled"])

    def pairings(self, config: Config) -> list[Pairing]:
        """See :class:`Architecture`."""
        pairs = same("transformer.wte", "token_embd") + same("transformer.wpe", "position_embd")
        for layer in range(config["n_layer"]):
            theirs, stored = f"transformer.h.{layer}.", f"blk.{layer}."
            pairs += same(f"{theirs}ln_1", f"{stored}attn_norm", "weight", "bias")
            pairs += same(f"{theirs}ln_2", f"{stored}ffn_norm", "weight", "bias")
            for name, place in (
                ("attn.c_attn", "attn_qkv"), ("attn.c_proj", "attn_output"), ("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down"),
            ):  # fmt: skip
                pairs.append(transposed(f"{theirs}{name}.weight", f"{stored}{place}.weight"))
                pairs += same(f"{theirs}{name}", f"{stored}{place}", "bias")
        return pairs + same("transformer.ln_f", "output_norm", "weight", "bias") + same("lm_head", "output")
