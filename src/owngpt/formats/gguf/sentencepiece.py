"""SentencePiece BPE in GGUF ("llama"): tokens with scores; spaces are "▁", and what has no token is spelled in bytes.

SentencePiece joins whichever neighbours make the token with the best score; the same as ordered merges when there is one
for every way to make a token out of two others, best score first (transformers' convert_slow_tokenizer.py does it too).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from gguf.constants import TokenType
from tokenizers import decoders, models, normalizers

from owngpt.errors import ModelFolderError

if TYPE_CHECKING:
    from owngpt.formats.gguf.vocabulary import Vocabulary

SPACE = "▁"
JOINED = (TokenType.NORMAL, TokenType.USER_DEFINED)
"""Kinds of tokens that take part in merges."""
Merges = list[tuple[str, str]]


def build_sentencepiece(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The `tokenizers` object, without its special tokens."""
    plain = [token for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == TokenType.NORMAL]
    prefix = vocabulary.get("add_space_prefix", bool, True)
    if not prefix and all(len(token) == 1 for token in plain):
        return _characters(vocabulary)
    texts = [
        token.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else token
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    ]
    unknown = next((t for t, kind in zip(texts, vocabulary.kinds, strict=True) if kind == TokenType.UNKNOWN), None)
    model = models.BPE(
        vocab={token: index for index, token in enumerate(texts)},
        merges=_ordered(_ways(_scores(vocabulary))),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    ends = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    return backend


def _characters(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """A vocabulary of single characters and bytes, as `owngpt tokenizer train --kind char` makes it."""
    tokens = {token.replace(SPACE, " "): index for index, token in enumerate(vocabulary.tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=tokens, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _scores(vocabulary: Vocabulary) -> dict[str, float]:
    """Of the tokens that take part in merges."""
    scores = vocabulary.get("scores", np.ndarray, None)
    if scores is None or scores.size < len(vocabulary.tokens):
        raise ModelFolderError("tokenizer.ggml.scores must have a number for each token")
    triples = zip(vocabulary.tokens, vocabulary.kinds, scores.tolist(), strict=False)
    return {token: score for token, kind, score in triples if kind in JOINED}


def _ways(scores: Mapping[str, float]) -> list[tuple[float, str, str]]:
    """Every way to make a token out of two others, with its score."""
    return [
        (score, token[:cut], token[cut:])
        for token, score in scores.items()
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]


def _ordered(ways: list[tuple[float, str, str]]) -> Merges:
    """Best score first; of the ways to the same token the one with the longest left part first."""
    return [(left, right) for _, left, right in sorted(ways, key=lambda way: (way[0], len(way[1]), len(way[2])), reverse=True)]


# Out


def sentencepiece_keys(description: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """The keys of a tokenizer.json with byte fallback."""
    for index, token in enumerate(tokens):
        if kinds[index] == TokenType.NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[index] = int(TokenType.BYTE)
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in description["model"]["merges"]]
    before, normalizer = description.get("pre_tokenizer"), description.get("normalizer")
    unknown = description["model"].get("unk_token")
    if unknown in tokens:
        kinds[tokens.index(unknown)] = int(TokenType.UNKNOWN)
    keys: dict[str, Any] = {"model": "llama", "pre": "default", "token_type": kinds}
    if not merges and before is None and normalizer is None:
        if SPACE in tokens:
            raise ModelFolderError(
                f"its vocabulary has the character {SPACE}, which llama.cpp reads as a space; export it as --format hf"
            )
        named = [SPACE if token == " " else token for token in tokens]
        return keys | {"tokens": named, "scores": [0.0] * len(tokens), "add_space_prefix": False}
    scores = _scores_of([(left, right) for left, right in merges], tokens)
    joined = {token: scores[i] for i, token in enumerate(tokens) if kinds[i] in JOINED}
    if set(_ordered(_ways(joined))) != set(merges):
        raise ModelFolderError(
            "its merges are not all the ways to join two tokens into a third, as SentencePiece's are, so that llama.cpp would "
            "cut text otherwise; export it as --format hf"
        )
    return keys | {"tokens": tokens, "scores": scores, "add_space_prefix": _prefix(normalizer, before)}


def _scores_of(merges: Merges, tokens: list[str]) -> list[float]:
    """Scores that rank tokens as their first merge does; what no merge makes comes after them all."""
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _prefix(normalizer: dict[str, Any] | None, before: dict[str, Any] | None) -> bool:
    """Whether a space is put before a text."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    kinds = [step["type"] for step in steps]
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if kinds in (["Prepend", "Replace"], ["Replace"]) and steps[-1] == replaces:
        harmless = before is None or (before["type"] == "Split" and before["pattern"] == {"String": " "})
        if harmless and (len(kinds) == 1 or steps[0]["prepend"] == SPACE):
            return len(kinds) == 2
    if normalizer is None and before is not None and before["type"] == "Metaspace" and before["replacement"] == SPACE:
        return bool(before["prepend_scheme"] != "never")
    raise ModelFolderError("it prepares text in a way that llama.cpp does not know; export it as --format hf")
