"""A random model of transformers, and how both sides continue a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from owngpt.engine.layout import Part
from owngpt.engine.torch_runner import BLOCK, TorchRunner
from owngpt.model.gpt import GPT


def build(name: str, values: dict[str, Any]) -> Any:
    """Every parameter is random, biases and norms too, since those that start at 0 or 1 would hide that they are not used."""
    config = getattr(transformers, f"{name}Config")(vocab_size=320, bos_token_id=0, eos_token_id=0, pad_token_id=0, **values)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def stored(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def left_padded(ids: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """(ids, mask) of the same shape, each row beginning with so much padding."""
    mask = (torch.arange(ids.shape[1]) >= padding[:, None]).long()
    return ids * mask, mask


def continued(model: GPT, ids: Tensor, mask: Tensor | None, count: int) -> Tensor:
    """The likeliest continuation of each row as the engine computes it, all rows side by side, token by token from its cache."""
    gaps = [0] * len(ids) if mask is None else (1 - mask).sum(1).tolist()
    rows = [row[gap:].tolist() for row, gap in zip(ids, gaps, strict=True)]
    table = -(-(ids.shape[1] + count) // BLOCK)
    runner = TorchRunner(model, 1 + table * len(rows))
    blocks = [range(1 + index * table, 1 + (index + 1) * table) for index in range(len(rows))]
    done = [0] * len(rows)
    for _ in range(count):
        parts = [Part(row[start:], start, own) for row, start, own in zip(rows, done, blocks, strict=True)]
        done = [len(row) for row in rows]
        for row, token_id in zip(rows, runner.run(parts).argmax(-1).tolist(), strict=True):
            row.append(token_id)
    return torch.stack([torch.cat((row[:gap], torch.tensor(text))) for row, gap, text in zip(ids, gaps, rows, strict=True)])


def theirs_continued(model: Any, ids: Tensor, mask: Tensor | None, count: int) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=count, use_cache=True, eos_token_id=None)


def theirs_alone(model: Any, ids: Tensor, mask: Tensor, count: int) -> Tensor:
    """Each row continued by itself, without its padding, for models whose padding in transformers changes what they compute."""
    gaps = (1 - mask).sum(1).tolist()
    rows = [theirs_continued(model, row[gap:][None], None, count)[0] for row, gap in zip(ids, gaps, strict=True)]
    return torch.stack([torch.cat((row[:gap], text)) for row, gap, text in zip(ids, gaps, rows, strict=True)])
