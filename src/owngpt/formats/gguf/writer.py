"""A model as a GGUF file that llama.cpp, and what is built on it, opens unpatched."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType, LlamaFileType
from torch import Tensor

from owngpt.config.files import TEMPORARY_SUFFIX, make_folder, storage_errors, sync_file, sync_folder
from owngpt.errors import ModelFolderError, UsageError
from owngpt.families import family_for
from owngpt.formats.gguf.architectures import architecture_for
from owngpt.formats.gguf.layout import Architecture
from owngpt.formats.gguf.quantization import quantize
from owngpt.formats.gguf.reader import SAMPLING
from owngpt.formats.gguf.vocabulary import tokenizer_keys
from owngpt.formats.weights import exported
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

KINDS: Mapping[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
SPELLINGS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""What llama.cpp's users call them."""
ALWAYS_FLOAT32 = ("position_embd.", "_norm.", "ffn_gate_inp.", "attn_sinks.", ".bias", "rope_freqs.")
"""Small tensors, in which llama.cpp expects float32."""
EMBEDDINGS = ("token_embd.weight", "output.weight")
"""Kept at 8 bits in a 4-bit file: each logit and each input hangs on one of their rows."""
LARGEST_HALF = 65504.0


def save_gguf(
    path: str | Path,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    dtype: str = "q8_0",
    name: str | None = None,
    generation: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a GGUF file. At any instant it is the old file or the new one, whole.

    :param dtype: float32, float16, bfloat16, q8_0 or q4_0 (f32, f16, bf16); norms and biases stay float32.
    :param name: what the model is called in the file; by default the file's own name.
    :param generation: the content of generation_config.json: sampling settings that the file recommends.
    :returns: what is not quite as asked, in sentences.
    :raises UsageError: an unknown dtype.
    :raises ModelFolderError: llama.cpp does not run such a model, or not such a tokenizer; the message says why.
    :raises StorageError: the disk is full, read-only or not ours; what was there is untouched.
    """
    path = Path(path)
    dtype = SPELLINGS.get(dtype.lower(), dtype.lower())
    if dtype not in KINDS:
        raise UsageError(f"unknown dtype {dtype!r} for GGUF; choose {', '.join(KINDS)}")
    export = _Export(model, dtype)
    keys = {
        "general.type": "model",
        "general.name": name or path.stem,
        "general.file_type": int(KINDS[dtype][1]),
        "general.quantization_version": GGML_QUANT_VERSION,
        **_sampling(generation or {}),
        **{f"{export.architecture.name}.{key}": value for key, value in export.keys.items()},
        **tokenizer_keys(tokenizer, model.config.vocab_size),
    }
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with storage_errors(path):
        try:
            _write(temporary, export, keys)
            sync_file(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return export.notes


def _sampling(generation: Mapping[str, Any]) -> dict[str, Any]:
    if not generation.get("do_sample"):
        return {}
    found = {f"general.sampling.{key}": generation.get(name) for key, name in SAMPLING.items()}
    return {
        name: (value if name.endswith("top_k") else float(value))
        for name, value in found.items()
        if isinstance(value, int | float)
    }


class _Export:
    """A model in the words of an architecture of llama.cpp."""

    def __init__(self, model: GPT, dtype: str) -> None:
        self._state, self._model_config = model.state_dict(), model.config
        self._family = family_for(model.config)
        self._config = self._family.from_config(model.config)
        self._wanted = KINDS[dtype][0]
        self.architecture: Architecture = architecture_for(self._family.model_type)
        misfits = self.architecture.misfits(self._config)
        if misfits:
            raise ModelFolderError(
                f"llama.cpp would not compute this model as it is: {'; '.join(misfits)}; export it as --format hf"
            )
        self.keys = self.architecture.keys(self._config)
        self.notes: list[str] = []
        if self.keys["context_length"] < model.config.context_length:
            self.notes.append(
                f"llama.cpp runs this model without its attention windows, so that the file allows "
                f"{self.keys['context_length']} tokens of context, within which they change nothing"
            )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the file: its name and its float32 values."""
        pairings = {pair.theirs: pair for pair in self.architecture.pairings(self._config)}
        for theirs, tensor in exported(self._state, self._family, self._model_config, torch.float32):
            pair = pairings[theirs]
            yield from zip(pair.stored, pair.write(tensor), strict=True)
            if pair.stored == EMBEDDINGS[:1] and self._config["tie_word_embeddings"] and self.architecture.always_has_head:
                yield EMBEDDINGS[1], tensor
        yield from self.architecture.constants(self._config).items()

    def kinds(self) -> dict[str, GGMLQuantizationType]:
        """What each tensor is stored as; says where that is not what was asked for."""
        found = {name: self._kind(name, tensor) for name, tensor in self.tensors()}
        for kind in (GGMLQuantizationType.F16, GGMLQuantizationType.F32):
            others = [name for name, chosen in found.items() if chosen == kind != self._wanted and not _small(name)]
            if others:
                self.notes.append(f"{len(others)} tensors are stored as {kind.name}, since {self._wanted.name} cannot hold them: "
                                  f"{others[0]}{' …' if len(others) > 1 else ''}")  # fmt: skip
        return found

    def _kind(self, name: str, tensor: Tensor) -> GGMLQuantizationType:
        kind = self._wanted
        if tensor.dim() < 2 or _small(name):
            return GGMLQuantizationType.F32
        if kind == GGMLQuantizationType.Q4_0 and name in EMBEDDINGS:
            kind = GGMLQuantizationType.Q8_0
        if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0]:
            kind = GGMLQuantizationType.F16
        if kind == GGMLQuantizationType.F16 and float(tensor.abs().max()) > LARGEST_HALF:
            kind = GGMLQuantizationType.F32
        return kind


def _small(name: str) -> bool:
    return any(part in name for part in ALWAYS_FLOAT32)


def _write(path: Path, export: _Export, keys: Mapping[str, Any]) -> None:
    writer = GGUFWriter(path, export.architecture.name)
    try:
        for key, value in keys.items():
            writer.add_key_value(key, value, _value_type(value))
        kinds = export.kinds()
        for name, tensor in export.tensors():
            block, width = GGML_QUANT_SIZES[kinds[name]]
            size = tensor.numel() // block * width
            writer.add_tensor_info(name, tensor.shape, torch.empty(0).numpy().dtype, size, kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in export.tensors():
            writer.write_tensor_data(quantize(tensor, kinds[name]))
    finally:
        writer.close()


def _value_type(value: Any) -> GGUFValueType:
    """Whole numbers are uint32, as llama.cpp reads them; others float32."""
    kind = GGUFValueType.get_type(value)
    return GGUFValueType.UINT32 if kind == GGUFValueType.INT32 else kind
