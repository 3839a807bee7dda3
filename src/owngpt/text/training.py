"""Making a tokenizer from text: byte-level BPE, plain bytes, or characters. Each is an ordinary ``tokenizer.json``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from owngpt.errors import DataError, UsageError
from owngpt.text.special import END_OF_TEXT, PADDING, RESERVED_COUNT, SPECIAL_TOKENS, SPLIT_PATTERN
from owngpt.text.stream import byte_of_symbol
from owngpt.text.tokenizer import Tokenizer

MINIMUM_VOCABULARY = RESERVED_COUNT + 256
MAXIMUM_VOCABULARY = 1 << 18
LONGEST_TOKEN = 32
"""Bytes; a longer token would be a phrase that the corpus happens to repeat."""
CHUNK_CHARACTERS = 1 << 16
SAMPLE_WORK = 8_000_000
"""What a vocabulary of 4,096 is learned from, in characters of a language that puts spaces between words."""
UNSPACED_WORK = 20
"""A character of a script without spaces costs about this much more: its runs are nearly all different, so that each
merge touches them all (measured: 0.3 s for 1 MB of English, 2 s for 1 MB of Chinese). A quarter of the text gives
2 % fewer bytes a token than all of it."""

_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff]")
_LONG_RUN = re.compile(r"[^\W\d_]{33,}|(?:[^\w\s]|_){65,}")
_LONG_SPACE = re.compile(r"\s{257,}")

Progress = Callable[[int], None]


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: Literal["bpe", "byte", "char"] = "bpe",
    vocab_size: int = 4096,
    progress: Progress | None = None,
) -> Tokenizer:
    """Learn a tokenizer.

    BPE is byte-pair encoding over UTF-8 bytes (arXiv 1508.07909; byte level: GPT-2, section 2.2). Every kind is
    lossless for every text. Ids 0 to 15 are the special tokens.

    :param texts: documents or parts of documents, read once; of a large corpus an even sample is kept.
    :param vocab_size: most ids, special tokens included; a small corpus may give fewer. Not used by "byte", which
        always has 272.
    :param progress: called with the number of characters read so far.
    :raises UsageError: an unknown kind, or a vocabulary outside of 272 … 262,144.
    :raises DataError: there is no text.
    """
    if kind == "byte":
        return _finished(_byte_backend())
    if not MINIMUM_VOCABULARY <= vocab_size <= MAXIMUM_VOCABULARY:
        raise UsageError(
            f"vocab_size {vocab_size} is outside of {MINIMUM_VOCABULARY} to {MAXIMUM_VOCABULARY}: "
            f"{RESERVED_COUNT} special tokens and 256 bytes are always there"
        )
    if kind == "bpe":
        return _train_bpe(texts, vocab_size, progress)
    if kind == "char":
        return _train_characters(texts, vocab_size, progress)
    raise UsageError(f"unknown tokenizer kind {kind!r}; choose bpe, byte or char")


# Byte-level BPE


def _train_bpe(texts: Iterable[str], vocab_size: int, progress: Progress | None) -> Tokenizer:
    chunks = _sample(_chunks(texts, progress), SAMPLE_WORK * max(1, vocab_size // 4096))
    if not chunks:
        raise DataError("there is no text to learn a tokenizer from; give a file or folder that holds some")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = _byte_level(SPLIT_PATTERN)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=_special_tokens(),
        initial_alphabet=sorted(byte_of_symbol()),
        max_token_length=LONGEST_TOKEN,
    )
    backend.train_from_iterator(map(_trainable, chunks), trainer=trainer, length=len(chunks))
    return _finished(backend)


def _sample(chunks: Iterable[str], work: int) -> list[str]:
    """An even sample of about ``work``: whenever twice as much is held, every second chunk is let go.

    One pass and bounded memory, without knowing how much is to come; the same texts give the same sample.
    """
    kept: list[tuple[str, int]] = []
    stride, total = 1, 0
    for index, chunk in enumerate(chunks):
        if index % stride:
            continue
        cost = _work(chunk)
        kept.append((chunk, cost))
        total += cost
        if total > 2 * work and len(kept) > 1:
            kept = kept[::2]
            stride *= 2
            total = sum(cost for _, cost in kept)
    if total > work and len(kept) > 1:  # between one and two times the work: spread the cut over the whole text
        keep = max(1, round(len(kept) * work / total))
        kept = [kept[index * len(kept) // keep] for index in range(keep)]
    return [chunk for chunk, _ in kept]


def _work(chunk: str) -> int:
    if chunk.isascii():
        return len(chunk)
    return len(chunk) + (UNSPACED_WORK - 1) * (len(chunk) - len(_UNSPACED.sub("", chunk)))


def _trainable(chunk: str) -> str:
    """The chunk with its longest runs cut: learning takes time square in the length of a run, and gains nothing by it.

    A newline starts a new piece under :data:`SPLIT_PATTERN` whatever its neighbours are.
    """
    chunk = _LONG_SPACE.sub(lambda run: run[0][:256], chunk)
    return _LONG_RUN.sub(lambda run: "\n".join(_cut(run[0], LONGEST_TOKEN)), chunk)


def _cut(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def _chunks(texts: Iterable[str], progress: Progress | None) -> Iterator[str]:
    """The texts in parts of at most :data:`CHUNK_CHARACTERS`, cut after a newline where there is one."""
    seen = 0
    for text in texts:
        start = 0
        while start < len(text):
            stop = min(start + CHUNK_CHARACTERS, len(text))
            if stop < len(text):
                newline = text.rfind("\n", start + 1, stop)
                stop = newline + 1 if newline > 0 else stop
            yield text[start:stop]
            seen += stop - start
            start = stop
            if progress is not None:
                progress(seen)


# Characters and bytes


def _train_characters(texts: Iterable[str], vocab_size: int, progress: Progress | None) -> Tokenizer:
    """A token for each of the most frequent characters; any other one is spelled in its UTF-8 bytes."""
    counts: Counter[str] = Counter()
    for chunk in _chunks(texts, progress):
        counts.update(chunk)
    if not counts:
        raise DataError("there is no text to learn a tokenizer from; give a file or folder that holds some")
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = sorted(frequent[: vocab_size - MINIMUM_VOCABULARY])
    tokens = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _finished(backend)


def _byte_backend() -> tokenizers.Tokenizer:
    """Byte-level BPE without anything learned: a token a byte."""
    symbols = sorted(byte_of_symbol(), key=byte_of_symbol().__getitem__)
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *symbols])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _special_tokens() -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]


def _finished(backend: tokenizers.Tokenizer) -> Tokenizer:
    backend.add_special_tokens(_special_tokens())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PADDING,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,  # the model's own limit is in its config.json
    }
    return Tokenizer(backend, settings=settings)
