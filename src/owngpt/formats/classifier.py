"""Folders of models that tell classes apart, as the ForSequenceClassification models of transformers lie in them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owngpt.errors import ModelFolderError, UsageError
from owngpt.families import Family, family_for, family_named
from owngpt.formats.folder import (
    CARD_FILE,
    CLASSIFIER,
    CONFIG_FILE,
    DTYPES,
    architecture_of,
    as_json,
    assembled,
    is_classifier,
    read_config,
    token_ids_of,
    write_folder,
)
from owngpt.formats.tensor_files import TensorFiles
from owngpt.formats.weights import export_state, load_state
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

HEAD = "score.weight"
"""(classes, hidden size)"""
LANGUAGE_MODEL = re.compile(r"(LMHeadModel|ForCausalLM)$")
MOST_LABELS = 100_000


@dataclass(frozen=True)
class ClassifierParts:
    """What a classifier's folder holds."""

    model: GPT
    """In evaluation mode; its head over tokens means nothing."""
    head: Tensor
    """(classes, hidden size), over the last token's hidden state"""
    labels: tuple[str, ...]
    """In the order of the classes."""
    tokenizer: Tokenizer


def save_classifier(
    folder: str | Path, parts: ClassifierParts, *, card: str | None = None, dtype: str = "float32", family: str | None = None
) -> list[Path]:
    """Write a model that transformers opens with AutoModelForSequenceClassification, labels included.

    :param card: text of README.md.
    :param dtype: float32, bfloat16 or float16.
    :param family: model_type of the layout to write where several hold this model.
    :returns: the files written.
    :raises ModelFolderError: no layout says this model exactly.
    :raises UsageError: labels are not as many as classes, or not all different.
    :raises StorageError: the disk is full, read-only or not ours; what was there is untouched.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; choose {', '.join(DTYPES)}")
    labels, config = parts.labels, parts.model.config
    if len(labels) != len(parts.head) or len(set(labels)) != len(labels):
        raise UsageError(f"there are {len(set(labels))} different labels for {len(parts.head)} classes; give each its own")
    layout = family_for(config, family)
    tensors = export_state(parts.model.state_dict(), layout, config, DTYPES[dtype])
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(layout.prefix)}
    tensors[HEAD] = parts.head.detach().to(device="cpu", dtype=DTYPES[dtype]).clone()
    values = {
        **layout.from_config(config),
        **token_ids_of(parts.tokenizer),
        "architectures": [architecture(layout)],
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "single_label_classification",
        "dtype": dtype,
    }
    texts = {CONFIG_FILE: as_json(values), **({CARD_FILE: card} if card is not None else {})}
    return write_folder(Path(folder), tensors, texts, parts.tokenizer)


def load_classifier(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> ClassifierParts:
    """Open what :func:`save_classifier` or transformers wrote.

    :raises ModelFolderError: it is not a classifier of a layout that we know, or something in it is missing or damaged.
    """
    folder = Path(folder)
    values = read_config(folder)
    if not is_classifier(values):
        raise ModelFolderError(f"{folder} is not a classifier, but a {architecture_of(values)}; open it with owngpt.load")
    family = family_named(values["model_type"])
    try:
        config = family.to_config(values)
    except (ModelFolderError, UsageError) as error:
        raise ModelFolderError(f"{folder}: {error}") from error
    config = replace(config, tie_embeddings=True)  # there is no head over tokens
    source = _LanguageModel(TensorFiles(folder), family, config)
    labels = _labels(folder, values, len(source.head))
    model = assembled(config, load_state(source, family, config, dtype))
    if source.head.shape[1] != config.hidden_size:
        raise ModelFolderError(f"{folder}: {HEAD} reads {source.head.shape[1]} values, the model has {config.hidden_size}")
    return ClassifierParts(model, source.head.to(dtype), labels, Tokenizer.load(folder))


def architecture(family: Family) -> str:
    """What transformers calls the classifier of a family."""
    if family.model_type == "gemma3_text":  # the name without Text is the model that also sees
        return "Gemma3Text" + CLASSIFIER
    return LANGUAGE_MODEL.sub(CLASSIFIER, family.architecture)


def _labels(folder: Path, values: dict[str, Any], classes: int) -> tuple[str, ...]:
    """By the classes' numbers; LABEL_0 and so on where the config names none, as transformers has it."""
    found = values.get("id2label")
    if found is None:
        return tuple(f"LABEL_{index}" for index in range(classes))
    wanted = [str(index) for index in range(classes)]
    if not isinstance(found, dict) or classes > MOST_LABELS or sorted(found) != sorted(wanted):
        raise ModelFolderError(f"{folder}: id2label is {json.dumps(found)[:80]}, but the head has {classes} classes")
    return tuple(str(found[index]) for index in wanted)


class _LanguageModel:
    """The tensors of a folder as if it held a language model: without the head over classes, and zero where the head over
    tokens would have its bias."""

    def __init__(self, files: TensorFiles, family: Family, config: GPTConfig) -> None:
        """:raises ModelFolderError: there is no head over classes."""
        self._files, self.path = files, files.path
        if len(files.shapes.get(HEAD, ())) != 2:
            raise ModelFolderError(f"{files.path} has no {HEAD} of classes × hidden size; copy the folder again")
        self.head = files.read(HEAD).clone()
        parts = [(entry, part) for entry in family.tensors(config) for part in entry.parts]
        absent = {part.name: entry.their_shape(part) for entry, part in parts if not part.name.startswith(family.prefix)}
        self._zeros = {name: torch.zeros(shape) for name, shape in absent.items() if name not in files.shapes}
        self.shapes = {name: shape for name, shape in files.shapes.items() if name != HEAD}
        self.shapes |= {name: tuple(zeros.shape) for name, zeros in self._zeros.items()}
        self.dtypes = {**files.dtypes, **dict.fromkeys(self._zeros, "F32")}

    def read(self, name: str) -> Tensor:
        return self._zeros[name] if name in self._zeros else self._files.read(name)

    def release(self, name: str) -> None:
        if name not in self._zeros:
            self._files.release(name)
