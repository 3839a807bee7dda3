"""gpt-oss in GGUF (arXiv 2508.10925): experts with gate and up apart, attention sinks, a window in every second layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from owngpt.formats.gguf.layout import Config, Pairing, same
from owngpt.formats.gguf.llama_like import LlamaLike
from owngpt.formats.gguf.metadata import Metadata
from owngpt.formats.gguf.rotary import rotary_block

BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}


class GPTOSS(LlamaLike):
    """OpenAI's open mixture of experts."""

    name = "gpt-oss"
    model_types: tuple[str, ...] = ("gpt_oss",)
    norm_pairs = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "post_attention_norm"))

    def own_config(self, metadata: Metadata) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        width = metadata.integer("expert_feed_forward_length", metadata.integer("feed_forward_length"))
        found: dict[str, Any] = {
            "model_type": "gpt_oss",
            "intermediate_size": width,
            "attention_bias": True,
            "num_local_experts": metadata.integer("expert_count"),
            "num_experts_per_tok": metadata.integer("expert_used_count"),
            "sliding_window": metadata.integer("attention.sliding_window"),
            "layer_types": _kinds(metadata.layers()),
        }
        shape = self._shape(metadata)
        if shape.get("rope_scaling", {}).get("rope_type") == "yarn":
            found["rope_scaling"] = {**shape["rope_scaling"], "truncate": False}
        return found

    def own_keys(self, config: Config) -> dict[str, Any]:
        """See :class:`LlamaLike`."""
        return {
            "context_length": config["max_position_embeddings"],
            "expert_feed_forward_length": config["intermediate_size"],
            "expert_count": config["num_local_experts"],
            "expert_used_count": config["num_experts_per_tok"],
            "attention.sliding_window": config["sliding_window"],
        }

    def own_misfits(self, config: Config) -> list[str]:
        """See :class:`LlamaLike`."""
        found = [] if config["layer_types"] == _kinds(config["num_hidden_layers"]) else ["not every second layer has a window"]
        block = rotary_block(config)
        odd = block["rope_type"] == "yarn" and any(block.get(name, value) != value for name, value in BETAS.items())
        found += ["the betas of its rotary scaling are not 32 and 1"] if odd else []
        return found + ([] if config.get("attention_bias", True) else ["its attention has no biases"])

    def layer(self, config: Config, theirs: str, stored: str) -> list[Pairing]:
        """See :class:`LlamaLike`."""
        sinks = Pairing(f"{theirs}self_attn.sinks", (f"{stored}attn_sinks.weight",))
        return [*super().layer(config, theirs, stored), sinks]

    def feed_forward(self, theirs: str, stored: str) -> list[Pairing]:
        """See :class:`LlamaLike`."""
        pairs = same(f"{theirs}mlp.router", f"{stored}ffn_gate_inp", "weight", "bias")
        for ours, kind in (("", "weight"), ("_bias", "bias")):
            names = tuple(f"{stored}ffn_{name}_exps.{kind}" for name in ("gate", "up"))
            pairs.append(Pairing(f"{theirs}mlp.experts.gate_up_proj{ours}", names, _woven, _unwoven))
        pairs.append(Pairing(f"{theirs}mlp.experts.down_proj", (f"{stored}ffn_down_exps.weight",), _flipped, _unflipped))
        pairs.append(Pairing(f"{theirs}mlp.experts.down_proj_bias", (f"{stored}ffn_down_exps.bias",)))
        return pairs


def _kinds(layers: int) -> list[str]:
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]


def _woven(tensors: Sequence[Tensor]) -> Tensor:
    """Gate and up (E, F, C) or (E, F) as one (E, C, 2F) or (E, 2F), the two in turn."""
    gate, up = (tensor.transpose(1, 2) if tensor.dim() == 3 else tensor for tensor in tensors)
    return torch.stack((gate, up), dim=-1).flatten(-2)


def _unwoven(tensor: Tensor) -> list[Tensor]:
    parts = [tensor[..., 0::2], tensor[..., 1::2]]
    return [part.transpose(1, 2) if part.dim() == 3 else part for part in parts]


def _flipped(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].transpose(1, 2) if tensors[0].dim() == 3 else tensors[0]


def _unflipped(tensor: Tensor) -> list[Tensor]:
    return [tensor.transpose(1, 2)]
