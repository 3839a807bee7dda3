"""What OwnGPT and other trainers write: folders and files that must never come back as training text.

They are told by what lies beside each other, and by content where the names alone could be a person's own.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from owngpt.data.files import CORPUS_FILE, MANIFEST, PREPARED_FILE, TEXT_FILE

_TOKENIZER_FILES = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"}
    | {"vocab.txt", "chat_template.jinja", "chat_template.json"}
)
_CONFIG_BYTES = 2**20
"""A model's config.json has a few kilobytes."""


KINDS = RUN, PREPARED, MODEL = "run of OwnGPT", "prepared data of OwnGPT", "model folder"


def kind_of(folder: Path, children: Collection[str], names: Collection[str]) -> str | None:
    """What trainer's output `folder` is, given the folders and files in it; none if it may hold a person's text."""
    if _is_run(folder) or ("run" in children and _is_run(folder / "run")):
        return RUN
    if _is_prepared(folder, children, names):
        return PREPARED
    return MODEL if _is_model(folder, names) else None


def tokenizer_files(names: Collection[str]) -> list[str]:
    """Those of a folder's files that make up a tokenizer, when it holds one."""
    if "tokenizer.json" not in names or "tokenizer_config.json" not in names:
        return []
    return sorted(_TOKENIZER_FILES.intersection(names))


def _is_run(folder: Path) -> bool:
    """The folder `run` of an output; one that was broken off early has no settings yet."""
    if (folder / "lock").is_file() and (folder / "data").is_dir():
        return True
    try:
        with open(folder / "run.yaml", "rb") as file:
            return file.read(8) == b"sources:"
    except OSError:
        return False


def _is_prepared(folder: Path, children: Collection[str], names: Collection[str]) -> bool:
    if TEXT_FILE in names and (CORPUS_FILE in names or len(names) == 1):  # alone: broken off while it was written
        return True
    if MANIFEST in names and any(name.startswith("train-") and name.endswith(".bin") for name in names):
        return True
    return (PREPARED_FILE in names or "tokenizer" in children) and (folder / "corpus" / TEXT_FILE).is_file()


def _is_model(folder: Path, names: Collection[str]) -> bool:
    if "Modelfile" in names and any(name.endswith(".gguf") for name in names):  # Ollama's
        return True
    if "config.json" not in names or not any(name.endswith((".safetensors", ".bin", ".gguf", ".pth")) for name in names):
        return False
    try:
        with open(folder / "config.json", "rb") as file:
            config = json.loads(file.read(_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "model_type" in config
