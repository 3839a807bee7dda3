"""What an engine guesses with: the text itself, and a small model from a path."""

from __future__ import annotations

from pathlib import Path

import torch

from owngpt.engine.draft import DraftModel
from owngpt.engine.load import load_engine, open_engine
from owngpt.engine.speculation import Speculation
from owngpt.formats.folder import open_model
from owngpt.text.tokenizer import Tokenizer

DRAFTED = 16
"""Texts of usual length for which a draft model's memory has room; the others go on without its guesses."""


def speculation_with(
    draft: str | Path | None,
    for_tokenizer: Tokenizer,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Speculation:
    """Guesses from the text itself, and where it says nothing those of a small model.

    :param draft: a model folder, a GGUF file or an adapter's folder; None guesses from the text alone.
    :param for_tokenizer: of the model that checks the guesses.
    :param device: where the small model computes, by default the CPU.
    :param dtype: what it computes in, by default the fastest.
    :raises UsageError: its tokenizer is another one.
    :raises ModelFolderError: it cannot be opened.
    """
    if draft is None:
        return Speculation()
    if device is None or device.type == "cpu":
        loaded = load_engine(draft, quantize="none", dtype=dtype, most_rows=DRAFTED)
        engine, tokenizer = loaded.engine, loaded.tokenizer
    else:
        network, tokenizer, _ = open_model(draft, dtype=dtype)
        engine = open_engine(network.to(device).eval(), tokenizer, quantize="none", most_rows=DRAFTED)
    return Speculation(draft=DraftModel(engine.runner, tokenizer, for_tokenizer=for_tokenizer))
