"""A small base on disk, and files of examples for every method, as a person would have them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from owngpt.formats.folder import save_model
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.chat import CHATML
from owngpt.text.training import train_tokenizer

THINGS = ("table", "shelf", "lamp", "rug", "vase", "pot", "towel", "kettle")
SHAPE = {"context_length": 32, "batch_size": 2}
METHODS = ("sft", "dpo", "ipo", "orpo", "classify")


def write_base(folder: Path, *, template: str | None = CHATML, context_length: int = 256) -> Path:
    """An untrained model of two layers over bytes, in the layout of Qwen3."""
    tokenizer = train_tokenizer([], kind="byte").with_chat_template(template)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context_length=context_length, hidden_size=32, layers=2, heads=2, key_value_heads=1,
        head_size=16, intermediate_size=64, tie_embeddings=True,
    )  # fmt: skip
    save_model(folder, GPT(config, generator=torch.Generator().manual_seed(7)), tokenizer)
    return folder


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def chats(count: int) -> list[dict[str, Any]]:
    """Questions that have one right answer each."""
    return [
        {"messages": [{"role": "user", "content": f"{thing(n)} {n}?"}, {"role": "assistant", "content": f"{thing(n)}: yes."}]}
        for n in range(count)
    ]


def preferences(count: int) -> list[dict[str, Any]]:
    """Short answers are better."""
    return [{"prompt": f"{thing(n)} {n}?", "chosen": " yes.", "rejected": f" {thing(n)} maybe."} for n in range(count)]


def labelled(count: int) -> list[dict[str, Any]]:
    """Two classes that one word tells apart."""
    return [{"text": f"{'good' if n % 2 else 'bad'} {thing(n)} {n}", "label": "+" if n % 2 else "-"} for n in range(count)]


def rows_for(method: str, count: int = 24) -> list[dict[str, Any]]:
    """What a method learns from."""
    return chats(count) if method == "sft" else labelled(count) if method == "classify" else preferences(count)


def thing(number: int) -> str:
    return THINGS[number % len(THINGS)]
