"""Which files of a hub's repository are a model: data, never programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from owngpt.config.units import in_bytes
from owngpt.errors import DownloadError
from owngpt.formats.hub.files import RemoteFile

MAXIMUM_FILES = 10_000
_GUIDES = """
config.json adapter_config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json
added_tokens.json vocab.json vocab.txt merges.txt chat_template.jinja chat_template.json model.safetensors.index.json
README.md
"""
_SMALL = frozenset(_GUIDES.split())
_TERMS = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY|GEMMA_TERMS)[\w.-]*", re.IGNORECASE)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_INDEX = "model.safetensors.index.json"
ADAPTER = frozenset(("adapter_config.json", "adapter_model.safetensors"))
"""What makes a repository an adapter, where it has no model of its own."""


def check_name(name: str, source: str) -> str:
    """A path inside of a repository or archive, as it is.

    :raises DownloadError: it leads out, or is none that an honest source has.
    """
    parts = name.split("/")
    bad = any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in parts[0] or not name.isprintable()
    if bad or len(name) > 1000:
        raise DownloadError(f"{source} names a file {name[:100]!r}, which no honest source does; nothing was taken")
    return name


def check_count(count: int, source: str) -> None:
    """:raises DownloadError: there are more files than a model has."""
    if count > MAXIMUM_FILES:
        raise DownloadError(f"{source} has {count:,} files, more than the {MAXIMUM_FILES:,} that a model may have")


def is_terms(name: str) -> bool:
    """Whether a file says under which terms the model may be used."""
    return _TERMS.fullmatch(name) is not None and PurePosixPath(name).suffix.lower() not in (".py", *_PICKLES)


def select(files: Sequence[RemoteFile], choice: str, source: str) -> list[RemoteFile]:
    """The files to take, from the top of a repository: a model or an adapter in safetensors, or one GGUF.

    :param choice: which .gguf is meant: its name or a part of it; "" for the safetensors, or the only .gguf.
    :raises DownloadError: there are none, only pickles, or several to choose from.
    """
    check_count(len(files), source)
    top = {file.name: file for file in files if "/" not in check_name(file.name, source)}
    guides = [file for name, file in top.items() if name in _SMALL or is_terms(name)]
    weights = [] if choice else _safetensors(top)
    if not weights:
        weights = [_gguf([file for name, file in top.items() if name.lower().endswith(".gguf")], choice, source, top)]
        guides = [file for file in guides if file.name == "README.md" or is_terms(file.name)]
    elif "config.json" not in top and not top.keys() >= ADAPTER:
        raise DownloadError(f"{source} has weights but no config.json, so nothing says what they are; name another model")
    return sorted(guides, key=lambda file: file.name) + weights


def _safetensors(top: dict[str, RemoteFile]) -> list[RemoteFile]:
    if "model.safetensors" in top:
        return [top["model.safetensors"]]
    shards = sorted(name for name in top if _SHARD.fullmatch(name)) if _INDEX in top else []
    if not shards and top.keys() >= ADAPTER:
        return [top["adapter_model.safetensors"]]
    return [top[name] for name in shards]


def _gguf(files: list[RemoteFile], choice: str, source: str, top: Iterable[str]) -> RemoteFile:
    files = [file for file in files if not file.name.lower().startswith("mmproj")]  # the eyes of a model, not the model
    exact = [file for file in files if file.name == choice]
    found = exact or [file for file in files if _is_chosen(file.name, choice)]
    if len(found) == 1:
        return found[0]
    if files:
        listed = ", ".join(f"{file.name} ({in_bytes(file.size or 0)})" for file in files[:40])
        problem = f"has no single .gguf for {choice!r}" if choice else f"has {len(files)} .gguf files"
        raise DownloadError(f"{source} {problem}; name one, as in {source}:Q8_0 or {source}:FILE. There are: {listed}")
    if pickles := sorted(name for name in top if name.lower().endswith(_PICKLES)):
        raise DownloadError(
            f"{source} has its weights only as {pickles[0]}, a pickle, which can run any program when it is opened and is not "
            "taken; where you trust it, open it with transformers and save it again with save_pretrained(), which writes "
            "safetensors, or ask its makers to"
        )
    raise DownloadError(f"{source} has no weights in safetensors or GGUF at its top; name another model")


def _is_chosen(name: str, choice: str) -> bool:
    """Whether `choice` is a part of `name` between separators, in any case; "" chooses everything."""
    pattern = rf"(^|[^a-z0-9]){re.escape(choice.lower())}([^a-z0-9]|$)"
    return not choice or re.search(pattern, name.lower()) is not None
