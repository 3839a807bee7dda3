"""A model out of OwnGPT: as a Hugging Face folder, as a GGUF file, or as what `ollama create` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from owngpt.errors import UsageError
from owngpt.formats.folder import DTYPES, save_model
from owngpt.formats.gguf import save_gguf
from owngpt.formats.ollama import MODEL_FILE, MODELFILE, write_modelfile
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

Format = Literal["hf", "gguf", "ollama"]
DEFAULT_GGUF_DTYPE = "q8_0"
"""A quarter of float32's size, and hardly a different answer."""
TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Export:
    """What was written."""

    files: tuple[Path, ...]
    dtype: str
    notes: tuple[str, ...]
    """What is not quite as asked, in sentences."""


def export_model(
    model: GPT,
    tokenizer: Tokenizer,
    *,
    format: Format,
    output: str | Path,
    dtype: str | None = None,
    force: bool = False,
    generation: Mapping[str, Any] | None = None,
    family: str | None = None,
) -> Export:
    """Write a model for others.

    :param format: hf, gguf or ollama.
    :param output: a folder, for gguf a file that ends in .gguf.
    :param dtype: hf: float32, bfloat16 or float16, by default what the model is in; gguf and ollama: float32, float16, bfloat16,
        q8_0 or q4_0, by default q8_0.
    :param force: replace what is there.
    :param generation: the content of generation_config.json.
    :param family: model_type of the Hugging Face layout where several hold the model.
    :raises UsageError: an unknown format or dtype, or the output is there already.
    :raises ModelFolderError: the format cannot hold this model; the message says why.
    """
    output = Path(output)
    if format not in get_args(Format):
        raise UsageError(f"unknown format {format!r}; choose {', '.join(get_args(Format))}")
    check_output(format, output, force=force)
    if format == "hf":
        dtype = dtype or TYPE_NAMES.get(model.embedding.weight.dtype, "float32")
        files = save_model(output, model, tokenizer, generation=generation, dtype=dtype, family=family)
        return Export(tuple(files), dtype, ())
    dtype = dtype or DEFAULT_GGUF_DTYPE
    if format == "gguf":
        return Export((output,), dtype, tuple(save_gguf(output, model, tokenizer, dtype=dtype, generation=generation)))
    file = output / MODEL_FILE
    notes = save_gguf(file, model, tokenizer, dtype=dtype, name=output.name, generation=generation)
    modelfile, more = write_modelfile(output, tokenizer)
    return Export((file, modelfile), dtype, (*notes, *more))


def check_output(format: Format, output: Path, *, force: bool) -> None:
    """Refuse a place that does not fit, before a large model is read for it.

    :raises UsageError: see :func:`export_model`.
    """
    if format == "gguf":
        if output.suffix.lower() != ".gguf" or output.is_dir():
            raise UsageError(f"{output} must be a file that ends in .gguf for --format gguf")
        if output.exists() and not force:
            raise UsageError(f"{output} is there already; choose another --output, or replace it with --force")
        return
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; --format {format} writes a folder")
    there = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    replaced = {MODEL_FILE, MODELFILE} if format == "ollama" else set(there)
    if there and not (force and (format == "hf" or replaced.issuperset(there))):
        fix = "choose another --output" + ("" if force else ", or replace the model in it with --force")
        raise UsageError(f"{output} already holds {there[0]}; {fix}")
