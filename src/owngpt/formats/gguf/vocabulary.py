"""The tokenizer in a GGUF file: tokens, their kinds, merges or scores, special tokens and chat template, in and out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from gguf.constants import TokenType
from tokenizers import AddedToken, processors

from owngpt.errors import ModelFolderError
from owngpt.formats.gguf.bytelevel import build_byte_level, byte_level_keys, byte_level_pre
from owngpt.formats.gguf.header import Header
from owngpt.formats.gguf.sentencepiece import build_sentencepiece, sentencepiece_keys
from owngpt.text.special import TURN_END_NAMES
from owngpt.text.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
ROLES = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
         "pad_token": "padding_token_id"}  # fmt: skip
"""Names in tokenizer_config.json and keys of the file."""
STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file: texts and kinds by id, without the unused ids at the end that only fill up the embedding."""

    tokens: list[str]
    kinds: list[int]
    values: dict[str, Any]
    """All keys of the file."""

    def get(self, name: str, kind: type, default: Any) -> Any:
        """A key of the tokenizer of that type."""
        value = self.values.get(PREFIX + name, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            raise ModelFolderError(f"{PREFIX}{name} is {str(value)[:60]}; it must be of the type {kind.__name__}")
        return value


# In


def read_tokenizer(header: Header) -> Tokenizer:
    """The tokenizer of a file.

    :raises ModelFolderError: it is missing, damaged, or of a kind that is not implemented.
    """
    try:
        vocabulary = _vocabulary(header.values)
        model = vocabulary.get("model", str, None)
        if model == "gpt2":
            pre = byte_level_pre(vocabulary.get("pre", str, None), header.values["general.architecture"])
            backend = build_byte_level(vocabulary, pre)
            begins = pre.begins
        elif model == "llama":
            backend, begins = build_sentencepiece(vocabulary), True
        else:
            raise ModelFolderError(f"its tokenizer is of the kind {str(model)[:60]!r}; gpt2 (byte-level BPE) and llama "
                                   "(SentencePiece BPE) are implemented")  # fmt: skip
        return _finished(backend, vocabulary, begins)
    except ModelFolderError as error:
        raise ModelFolderError(f"{header.path}: {error}") from error


def _vocabulary(values: dict[str, Any]) -> Vocabulary:
    tokens = values.get(PREFIX + "tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelFolderError("it has no tokenizer.ggml.tokens, so that it cannot read text")
    kinds = _numbers(values, "token_type", len(tokens), TokenType.NORMAL)
    last = len(tokens)
    while last and kinds[last - 1] == TokenType.UNUSED and tokens[last - 1] == f"[PAD{last - 1}]":
        last -= 1
    if len(set(tokens)) < len(tokens):
        raise ModelFolderError("its vocabulary has a token twice")
    return Vocabulary(tokens[:last], kinds[:last], values)


def _numbers(values: dict[str, Any], name: str, count: int, default: int) -> list[int]:
    found = values.get(PREFIX + name)
    if found is None:
        return [int(default)] * count
    if not isinstance(found, np.ndarray) or found.size != count:
        raise ModelFolderError(f"{PREFIX}{name} must have a number for each of the {count:,} tokens")
    numbers: list[int] = found.tolist()
    return numbers


def _finished(backend: tokenizers.Tokenizer, vocabulary: Vocabulary, begins: bool) -> Tokenizer:
    for kinds, special in (((TokenType.CONTROL, TokenType.UNKNOWN), True), ((TokenType.USER_DEFINED,), False)):
        chosen = [
            AddedToken(backend.id_to_token(index), special=special, normalized=False)
            for index, kind in enumerate(vocabulary.kinds)
            if kind in kinds
        ]
        backend.add_special_tokens(chosen) if special else backend.add_tokens(chosen)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, key in ROLES.items():
        if (index := token_id(vocabulary, key)) is not None:
            settings[role] = backend.id_to_token(index)
    settings["add_bos_token"] = vocabulary.get("add_bos_token", bool, begins) and "bos_token" in settings
    if settings["add_bos_token"]:
        begin = settings["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], pair=[begin, "$A", f"{begin}:1", "$B:1"], special_tokens=[(begin, backend.token_to_id(begin))]
        )
    template = vocabulary.values.get(TEMPLATE)
    return Tokenizer(backend, settings=settings, chat_template=template if isinstance(template, str) else None)


def token_id(vocabulary: Vocabulary, key: str) -> int | None:
    """The id under a key; None where it is absent or, as in some files, outside of the vocabulary."""
    index: int | None = vocabulary.get(key, int, None)
    return index if index is not None and 0 <= index < len(vocabulary.tokens) else None


def stop_ids(header: Header) -> list[int]:
    """Ids that end a text or a turn, as the file names them."""
    vocabulary = _vocabulary(header.values)
    found = [token_id(vocabulary, key) for key in STOP_KEYS]
    return sorted({index for index in found if index is not None})


# Out


def tokenizer_keys(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """All keys of a tokenizer, their full names and values.

    :param size: rows of the model's embedding; ids that no token has are filled up with unused ones.
    :raises ModelFolderError: llama.cpp cannot cut text as this tokenizer does.
    """
    description = tokenizer.description
    model = description["model"]
    if model.get("type") != "BPE":
        raise ModelFolderError(f"llama.cpp reads BPE vocabularies, this one is {model.get('type')}; export it as --format hf")
    added = {token["id"]: token for token in description["added_tokens"]}
    vocabulary = {**model["vocab"], **{token["content"]: index for index, token in added.items()}}
    tokens, kinds = [f"[PAD{index}]" for index in range(size)], [int(TokenType.UNUSED)] * size
    for token, index in vocabulary.items():
        tokens[index], kinds[index] = token, int(TokenType.NORMAL)
    for index, token in added.items():
        kinds[index] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    if len(set(tokens)) < size:
        raise ModelFolderError("its vocabulary has tokens called [PAD…] of its own; llama.cpp needs every name once")
    decoder = description.get("decoder") or {}
    if decoder.get("type") == "ByteLevel":
        keys = byte_level_keys(description, tokens, kinds)
    elif model.get("byte_fallback"):
        keys = sentencepiece_keys(description, tokens, kinds)
    else:
        raise ModelFolderError("llama.cpp reads byte-level vocabularies and those with byte fallback; export it as --format hf")
    keys |= {"add_bos_token": adds_begin(tokenizer), "add_eos_token": False, **_special(tokenizer)}
    named = {PREFIX + name: value for name, value in keys.items()}
    return named | ({TEMPLATE: tokenizer.chat_template} if tokenizer.chat_template else {})


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    found: dict[str, int] = {}
    if tokenizer.begin_of_text_id is not None:
        found["bos_token_id"] = tokenizer.begin_of_text_id
    if tokenizer.stop_ids:
        found |= {"eos_token_id": tokenizer.end_of_text_id, "padding_token_id": tokenizer.padding_id}
    ends = [tokenizer.special_ids[name] for name in TURN_END_NAMES if name in tokenizer.special_ids]
    if ends:
        found["eot_token_id"] = ends[0]
    unknown = tokenizer.settings.get("unk_token")
    name = unknown.get("content") if isinstance(unknown, dict) else unknown
    if name in tokenizer.vocabulary:
        found["unknown_token_id"] = tokenizer.vocabulary[name]
    return found


def adds_begin(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's own rules put the begin-of-text token before a text."""
    begin = tokenizer.begin_of_text_id
    if begin is None:
        return False
    said = tokenizer.settings.get("add_bos_token")
    if isinstance(said, bool):
        return said
    processor = tokenizer.description.get("post_processor") or {}
    steps = [step for step in processor.get("processors", [processor]) if step.get("type") == "TemplateProcessing"]
    firsts = [step["single"][0].get("SpecialToken", {}).get("id") for step in steps if step["single"]]
    return tokenizer.token(begin) in firsts
