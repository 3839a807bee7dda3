"""Which tokens keep a text valid UTF-8: exactly those that Python's own decoder accepts."""

from __future__ import annotations

import random

import numpy as np
import tokenizers

from owngpt.text.characters import REFUSED, STATES, WHOLE, WholeCharacters, state_after
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

SAMPLES = "aé汉🐦\u0800\uffff\U00010000\U0010ffff\ud7ff\ue000 "


def is_beginning(data: bytes) -> bool:
    """Whether bytes begin a valid text, by the exception that Python raises."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and error.end == len(data)
    return True


def test_every_pair_of_bytes_is_judged_as_python_judges_it() -> None:
    for first in range(256):
        for second in range(256):
            data = bytes((first, second))
            assert (state_after(data) != REFUSED) == is_beginning(data), data


def test_beginnings_of_characters_end_within_and_whole_ones_end_whole() -> None:
    for character in SAMPLES:
        data = character.encode()
        assert state_after(data) == WHOLE
        for end in range(1, len(data)):
            assert state_after(data[:end]) not in (WHOLE, REFUSED)
    for broken in (b"\xed\xa0\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xf8", b"\xff"):
        assert state_after(broken) == REFUSED


def test_random_walks_over_a_vocabulary_of_bytes_stay_valid() -> None:
    tokenizer, generator = train_tokenizer([], kind="byte"), random.Random(1)
    characters = tokenizer.whole_characters
    assert characters is not None
    written: list[int] = [
        generator.randrange(200, 270) for _ in range(3)
    ]  # a prompt that ends within a character changes nothing
    for _ in range(3000):
        state = characters.state(written, 3)
        allowed = (~characters.forbidden[state]).nonzero()[0].tolist()
        token_id = generator.choice(allowed)
        assert characters.allows(written, 3, token_id)
        refused = characters.forbidden[state].nonzero()[0].tolist()
        assert not any(characters.allows(written, 3, other) for other in generator.sample(refused, 3))
        written.append(token_id)
    assert is_beginning(b"".join(tokenizer.token_bytes(index) for index in written[3:] if index not in tokenizer.special_id_set))


def test_an_end_comes_only_between_characters() -> None:
    tokenizer = train_tokenizer([], kind="byte")
    characters = tokenizer.whole_characters
    assert characters is not None
    begun = tokenizer.encode("汉")[:2]
    assert not characters.allows(begun, 0, tokenizer.end_of_text_id)
    assert characters.allows(tokenizer.encode("汉"), 0, tokenizer.end_of_text_id)


def test_a_character_is_not_begun_that_no_token_completes() -> None:
    spellings = {0: "a", 1: "<0xE6>", 2: "<0xB1>", 3: "<0xC3>", 4: "<0xA9>"}
    values = {spelling: token_id for token_id, spelling in spellings.items()}
    found = WholeCharacters(
        values, spellings.get, lambda token: bytes([int(token[3:5], 16)]) if "<" in token else b"a", frozenset()
    )
    assert found.allows([0], 0, 3)
    assert found.allows([0, 3], 0, 4)
    assert found.allows([0], 0, 1)  # completed by any two later bytes
    del values["<0xB1>"], values["<0xA9>"]
    found = WholeCharacters(
        values, spellings.get, lambda token: bytes([int(token[3:5], 16)]) if "<" in token else b"a", frozenset()
    )
    assert [found.allows([0], 0, token_id) for token_id in (0, 1, 3)] == [True, False, False]


def test_merged_tokens_may_end_within_a_character_and_others_begin_there() -> None:
    tokenizer = train_tokenizer(["汉字和文字，汉字。" * 50], kind="bpe", vocab_size=300)
    characters = tokenizer.whole_characters
    assert characters is not None
    assert characters.forbidden.shape == (STATES, tokenizer.vocab_size)
    written: list[int] = []
    for token_id in tokenizer.encode("汉字🐦和a文é"):
        assert characters.allows(written, 0, token_id)
        written.append(token_id)


def test_where_every_token_is_text_there_is_nothing_to_watch() -> None:
    words = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a")))
    assert words.whole_characters is None
    assert not np.any(WholeCharacters({"a": 0, "Ġb": 1}, ["a", "Ġb"].__getitem__, str.encode, frozenset()).forbidden[WHOLE])
