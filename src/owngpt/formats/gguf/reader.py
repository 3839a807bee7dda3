"""A GGUF file as a model: its head becomes a config.json, its tensors get their Hugging Face names, its keys a tokenizer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from owngpt.errors import ModelFolderError, UsageError
from owngpt.families import Family, family_named
from owngpt.formats.folder import assembled
from owngpt.formats.gguf.architectures import architecture_named
from owngpt.formats.gguf.header import Header, read_header
from owngpt.formats.gguf.metadata import Metadata
from owngpt.formats.gguf.tensors import GGUFTensors
from owngpt.formats.gguf.vocabulary import read_tokenizer, stop_ids
from owngpt.formats.weights import Prepare, load_state, stored_dtype
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}
"""Keys under ``general.sampling`` and fields of generation_config.json."""


def load_gguf(
    path: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    prepare: Prepare | None = None,
    tokenizer: Tokenizer | None = None,
) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """Open a GGUF file.

    :param dtype: of the parameters in memory, into which quantized tensors are unpacked; None leaves them as most are stored,
        and float32 where they are quantized.
    :param prepare: says what becomes of each tensor, see :data:`owngpt.formats.weights.Prepare`.
    :param tokenizer: to be taken instead of the file's.
    :returns: the model, on the CPU and in evaluation mode, its tokenizer, and what a generation_config.json would say.
    :raises ModelFolderError: the file is damaged, or of a kind that is not implemented; one sentence says what.
    """
    header = read_header(path)
    values, config, tensors = _described(header)
    with ThreadPoolExecutor(1) as pool:  # most of both happens without the interpreter's lock
        reading = pool.submit(read_tokenizer, header) if tokenizer is None else None
        family, take = family_named(values["model_type"]), prepare and prepare(config)
        state = load_state(tensors, family, config, dtype or stored_dtype(tensors), take)
        tokenizer = tokenizer if reading is None else reading.result()
    assert tokenizer is not None
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelFolderError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} ids, its model only {config.vocab_size} embeddings; "
            "they do not belong together"
        )
    return assembled(config, state), tokenizer, _generation(header, tokenizer)


def load_gguf_config(path: str | Path) -> tuple[Family, GPTConfig]:
    """The layout and the configuration of a GGUF file.

    :raises ModelFolderError: see :func:`load_gguf`.
    """
    values, config, _ = _described(read_header(path))
    return family_named(values["model_type"]), config


def _described(header: Header) -> tuple[dict[str, Any], GPTConfig, GGUFTensors]:
    """The config.json of a file, in their words and in ours, and its tensors."""
    metadata = Metadata(header)
    try:
        architecture = architecture_named(metadata.architecture)
        values = architecture.config(metadata)
        config = family_named(values["model_type"]).to_config(values)
    except (ModelFolderError, UsageError) as error:
        text = str(error)
        raise ModelFolderError(text if text.startswith(str(header.path)) else f"{header.path}: {text}") from error
    return values, config, GGUFTensors(metadata, architecture.pairings(values), values)


def _generation(header: Header, tokenizer: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = {"eos_token_id": sorted({*stop_ids(header), *tokenizer.stop_ids})}
    if tokenizer.begin_of_text_id is not None:
        found["bos_token_id"] = tokenizer.begin_of_text_id
    sampling = {name: header.values.get(f"general.sampling.{key}") for key, name in SAMPLING.items()}
    numbers = {name: value for name, value in sampling.items() if isinstance(value, int | float)}
    return found | ({"do_sample": True, **numbers} if numbers else {})
