"""Byte-level BPE in GGUF ("gpt2"): tokens spelled in the 256 printable stand-ins for bytes, merges, the name of a cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from owngpt.errors import ModelFolderError
from owngpt.formats.gguf.pretokenizers import BYTES, PreTokenizer, pre_tokenizer_named, pre_tokenizer_of, steps_of

if TYPE_CHECKING:
    from owngpt.formats.gguf.vocabulary import Vocabulary

NORMALIZER = "owngpt_normalizer"
"""Our own key, "none" or "nfc": GGUF has none, and without it the name of the cut decides."""
NO_MERGE = ""
"""llama.cpp wants at least one merge; this one can never apply."""


def byte_level_pre(name: str | None, architecture: str) -> PreTokenizer:
    """How text is cut; files from before April 2024 do not say it."""
    if name is None:
        name = "gpt-2" if architecture == "gpt2" else "default"
    return pre_tokenizer_named(name)


def build_byte_level(vocabulary: Vocabulary, pre: PreTokenizer) -> tokenizers.Tokenizer:
    """The `tokenizers` object, without its special tokens."""
    merges = vocabulary.get("merges", list, [])
    pairs = [_pair(merge) for merge in merges if merge != NO_MERGE]
    tokens = {token: index for index, token in enumerate(vocabulary.tokens)}
    try:
        model = models.BPE(vocab=tokens, merges=pairs, ignore_merges=pre.whole_words and bool(pairs))
    except Exception as error:  # the library raises bare Exception
        raise ModelFolderError(f"its merges do not fit its vocabulary: {error}") from error
    backend = tokenizers.Tokenizer(model)
    if vocabulary.get(NORMALIZER, str, "nfc" if pre.nfc else "none") == "nfc":
        backend.normalizer = normalizers.NFC()
    # Without merges every byte is a token, however the text is cut.
    backend.pre_tokenizer = pre.build() if pairs else pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str) -> tuple[str, str]:
    cut = merge.find(" ", 1)
    if cut < 0:
        raise ModelFolderError(f"its merge {merge[:40]!r} is not two tokens with a space between")
    return merge[:cut], merge[cut + 1 :]


def byte_level_keys(description: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """The keys of a byte-level tokenizer.json."""
    model = description["model"]
    normalizer = (description.get("normalizer") or {}).get("type", "none").lower()
    if normalizer not in ("none", "nfc"):
        raise ModelFolderError(
            f"it changes text by {normalizer} before it cuts it, which llama.cpp does not; export it as --format hf"
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ModelFolderError(f"its BPE has a {name}, which llama.cpp does not know; export it as --format hf")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    steps = steps_of(description.get("pre_tokenizer"))
    if not merges and steps == (BYTES,):
        pre = pre_tokenizer_named("gpt-2")
    else:
        pre = pre_tokenizer_of(steps, whole_words=bool(model.get("ignore_merges")), nfc=normalizer == "nfc")
    keys: dict[str, Any] = {
        "model": "gpt2",
        "pre": pre.name,
        "tokens": tokens,
        "token_type": kinds,
        "merges": merges or [NO_MERGE],
    }
    return keys if pre.nfc == (normalizer == "nfc") else keys | {NORMALIZER: normalizer}
