"""Incremental decoding hands out valid UTF-8 only, and in the end the same text as decoding everything at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies
from tests.text.chat_tokenizers import KINDS, without_bytes

from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

TEXT = "The cat sat on the mat. 猫坐在垫子上。😀 naïve café — déjà vu\n" * 20
TOKENIZERS = {
    **{kind: train_tokenizer([TEXT], kind=kind, vocab_size=400) for kind in ("bpe", "byte", "char")},
    **{kind: Tokenizer(make()) for kind, make in KINDS.items()},
    "without_bytes": Tokenizer(without_bytes()),
}


def streamed(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    stream = tokenizer.stream(skip_special)
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_ids_stream_as_valid_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]

    @settings(max_examples=150, deadline=None)
    @given(strategies.lists(strategies.integers(0, tokenizer.vocab_size + 2), max_size=40), strategies.booleans())
    def check(ids: list[int], skip_special: bool) -> None:
        pieces = streamed(tokenizer, ids, skip_special)
        for piece in pieces:
            piece.encode("utf-8")
        assert "".join(pieces) == tokenizer.decode(ids, skip_special)

    check()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_encoded_text_streams_whole_characters_only(name: str) -> None:
    tokenizer = TOKENIZERS[name]

    @settings(max_examples=150, deadline=None)
    @given(strategies.text(strategies.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30))
    def check(text: str) -> None:
        pieces = streamed(tokenizer, tokenizer.encode(text))
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text))

    check()
