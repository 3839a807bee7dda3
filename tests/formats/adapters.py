"""Small models with small adapters in the files that PEFT writes, made without PEFT, which takes seconds to import."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from owngpt.formats.folder import save_model
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

TOKENIZER = train_tokenizer([], kind="byte")
CONFIG = GPTConfig(
    vocab_size=TOKENIZER.vocab_size, context_length=64, hidden_size=64, layers=2, heads=2, key_value_heads=1, head_size=32,
    intermediate_size=96,
)  # fmt: skip
SIZES = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64), "down_proj": (64, 96)}


def base_model(seed: int = 0, vocabulary: int = CONFIG.vocab_size) -> GPT:
    """Random weights that have opinions."""
    model = GPT(replace(CONFIG, vocab_size=vocabulary), generator=torch.Generator().manual_seed(seed)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 5
    return model


def write_base(folder: Path, seed: int = 0, *, dtype: str = "float32", tokenizer: Tokenizer = TOKENIZER) -> Path:
    """A model folder."""
    save_model(folder, base_model(seed, tokenizer.vocab_size), tokenizer, dtype=dtype)
    return folder


def write_adapter(folder: Path, base: str | None, seed: int = 1, rank: int = 4, **settings: Any) -> Path:
    """An adapter folder over a base of :data:`CONFIG`'s shape."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(CONFIG.layers):
        for target, (outputs, inputs) in SIZES.items():
            room = "mlp" if target == "down_proj" else "self_attn"
            stem = f"base_model.model.model.layers.{layer}.{room}.{target}.lora_"
            tensors[f"{stem}A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.2
            tensors[f"{stem}B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": base, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder
