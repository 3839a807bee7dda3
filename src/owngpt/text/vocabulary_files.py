"""A tokenizer in GPT-2's own layout: ``vocab.json`` and ``merges.txt``, byte-level BPE, without a ``tokenizer.json``.

The two files do not say how text is cut before it is merged; that GPT-2, GPT-Neo and GPT-J cut it alike is known, so these
are opened, and a folder that says it is another model is refused rather than guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from owngpt.config.json_files import read_bounded, read_json_object
from owngpt.errors import ModelFolderError
from owngpt.text.special import END_OF_TEXT
from owngpt.text.stream import byte_of_symbol

VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
ADDED_FILE = "added_tokens.json"
CONFIG_FILE = "config.json"
MAXIMUM_BYTES = 64 << 20
"""GPT-2's vocabulary has 1 MB."""
MAXIMUM_ID = 1 << 24
MODEL_TYPES = frozenset({"gpt2", "gpt_neo", "gptj"})
CLASSES = frozenset({"GPT2Tokenizer", "GPT2TokenizerFast"})
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def holds_vocabulary(folder: Path) -> bool:
    """Whether a folder has the two files."""
    return (folder / VOCABULARY_FILE).is_file() and (folder / MERGES_FILE).is_file()


def read_vocabulary(folder: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """The `tokenizers` object of a folder that :func:`holds_vocabulary`.

    :param settings: the content of ``tokenizer_config.json`` and ``special_tokens_map.json``; what GPT-2's tokenizer takes
        for granted, that one token begins and ends a text, is added to it.
    :raises ModelFolderError: a file is damaged, or the tokenizer is known to be none of GPT-2's kind.
    """
    _check_kind(folder, settings)
    vocabulary = _vocabulary(folder / VOCABULARY_FILE)
    if END_OF_TEXT in vocabulary:
        settings |= {name: END_OF_TEXT for name in NAMED[:3] if settings.get(name) is None}
    added = _added_tokens(folder, vocabulary, settings)
    vocabulary |= {entry["content"]: entry["id"] for entry in added}  # the library would close gaps between their ids
    description = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": settings.get("add_prefix_space") is True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": _merges(folder / MERGES_FILE)},
    }
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library raises bare Exception
        raise ModelFolderError(f"{folder}: its {MERGES_FILE} does not fit its {VOCABULARY_FILE}: {error}") from error
    begin = _content(settings.get("bos_token"))
    if settings.get("add_bos_token") is True and begin:
        backend.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], special_tokens=[(begin, backend.token_to_id(begin))]
        )
    return backend


def _check_kind(folder: Path, settings: Mapping[str, Any]) -> None:
    config = read_json_object(folder / CONFIG_FILE, MAXIMUM_BYTES) if (folder / CONFIG_FILE).is_file() else {}
    model_type = config.get("model_type", "gpt2")
    name = settings.get("tokenizer_class") or config.get("tokenizer_class") or "GPT2Tokenizer"
    if model_type in MODEL_TYPES and name in CLASSES:
        return
    raise ModelFolderError(
        f"{folder} has no tokenizer.json, only {VOCABULARY_FILE} and {MERGES_FILE}, which do not say how text is cut; that is "
        f"known of GPT-2, GPT-Neo and GPT-J, and this is a {str(name)[:100]} of a {str(model_type)[:100]} model: copy its "
        "tokenizer.json, or save it again with transformers, whose save_pretrained() writes one"
    )


def _vocabulary(file: Path) -> dict[str, int]:
    values = read_json_object(file, MAXIMUM_BYTES)
    ids = list(values.values())
    if any(isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MAXIMUM_ID for index in ids):
        raise ModelFolderError(f"{file} gives a token something else than an id from 0 to {MAXIMUM_ID - 1:,}; copy it again")
    if len(set(ids)) < len(ids):
        raise ModelFolderError(f"{file} gives one id to several tokens; copy it again")
    if missing := [symbol for symbol in byte_of_symbol() if symbol not in values]:
        raise ModelFolderError(
            f"{file} has no token for {len(missing)} of the 256 bytes ({missing[0]!r} is one), so it is not byte-level BPE; "
            "copy the model's tokenizer.json, or save it again with transformers, whose save_pretrained() writes one"
        )
    return values


def _merges(file: Path) -> list[list[str]]:
    """The pairs that are merged, the first before the others; an opening line with the version is passed over."""
    try:
        lines = read_bounded(file, MAXIMUM_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelFolderError(f"{file} is not UTF-8 ({error}); copy it again") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        pair = line.removesuffix("\r").split(" ")
        if pair == [""] or (number == 1 and line.startswith("#version")):
            continue
        if len(pair) != 2 or not all(pair):
            raise ModelFolderError(f"{file}, line {number}: {line[:40]!r} is not two tokens with a space between; copy it again")
        pairs.append(pair)
    return pairs


def _added_tokens(folder: Path, vocabulary: Mapping[str, int], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tokens that are taken whole, by id: those that the files number, then special ones that nothing numbers."""
    added: dict[str, dict[str, Any]] = {}
    path = folder / ADDED_FILE
    for token, index in (read_json_object(path, MAXIMUM_BYTES) if path.is_file() else {}).items():
        added[token] = _added(index, token, {}, False)
    decoder = settings.get("added_tokens_decoder")
    for index, value in decoder.items() if isinstance(decoder, dict) else ():
        number = int(index) if index.isascii() and index.isdigit() and len(index) < 10 else None
        added[_content(value)] = _added(number, _content(value), value, isinstance(value, dict) and value.get("special") is True)
    for token, entry in added.items():
        _check_id(folder, token, entry["id"], vocabulary)
    following = max([*vocabulary.values(), *(entry["id"] for entry in added.values())]) + 1
    for value in _special_values(settings):
        token = _content(value)
        index = added[token]["id"] if token in added else vocabulary.get(token, following)
        following += index == following
        added[token] = _added(index, token, value if isinstance(value, dict) else added.get(token, {}), True)
    return sorted(added.values(), key=lambda entry: entry["id"])


def _check_id(folder: Path, token: str, index: Any, vocabulary: Mapping[str, int]) -> None:
    sound = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < MAXIMUM_ID
    if not token or not sound or vocabulary.get(token, index) != index:
        raise ModelFolderError(
            f"{folder}: its added token {token[:40]!r} has the id {str(index)[:40]}; it must be a whole number under "
            f"{MAXIMUM_ID:,} and that of {VOCABULARY_FILE} where that has the token: copy the folder again"
        )


def _special_values(settings: Mapping[str, Any]) -> list[Any]:
    named = [settings.get(name) for name in NAMED]
    listed = [entry for name in LISTED if isinstance(settings.get(name), list) for entry in settings[name]]
    return [value for value in (*named, *listed) if _content(value)]


def _content(value: Any) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _added(index: Any, token: str, flags: Any, special: bool) -> dict[str, Any]:
    given = flags if isinstance(flags, dict) else {}
    return {"id": index, "content": token, "special": special, **{name: given.get(name) is True for name in FLAGS}}
