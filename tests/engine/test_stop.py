"""Stop strings end the text wherever token borders fall, and no part of them is shown."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine import poem

from owngpt.config.generation import GenerationConfig
from owngpt.engine.sequence import Generation, TextSequence
from owngpt.engine.stop import StopMatcher


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    text = "".join(matcher.push(piece) for piece in pieces)
    return text + matcher.finish(), matcher.matched


@given(
    text=st.text("ab\n鸟", max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=8),
    stop=st.text("ab\n鸟", min_size=1, max_size=5),
)
def test_any_cut_of_the_text_shows_what_stands_before_the_stop_string(text: str, cuts: list[int], stop: str) -> None:
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    shown, matched = run([text[a:b] for a, b in pairwise(borders)], [stop])
    assert shown == text.split(stop)[0]
    assert matched == (stop in text)


def test_what_may_begin_a_stop_string_is_held_back_and_then_let_go() -> None:
    matcher = StopMatcher(["User:"])
    assert matcher.push("I am\nUs") == "I am\n"
    assert matcher.push("e") == ""
    assert matcher.push("ful.") == "Useful."
    assert matcher.push(" User") == " "
    assert matcher.finish() == "User"
    assert not matcher.matched


def test_the_earliest_of_several_stop_strings_ends_the_text() -> None:
    assert run(["one two ", "three"], ["three", "two"]) == ("one ", True)


def test_nothing_passes_after_the_stop_string() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == "a"
    assert matcher.push("c") == ""
    assert matcher.finish() == ""


@pytest.mark.parametrize("pieces", [["", ""], ["a", "", "b"]])
def test_without_stop_strings_all_passes(pieces: list[str]) -> None:
    assert run(pieces, []) == ("".join(pieces), False)


def test_a_stop_token_ends_the_text_unseen_and_is_among_its_tokens() -> None:
    tokenizer = poem.tokenizer()
    ids = tokenizer.encode("one\ntwo")
    newline = ids[3]
    sequence = TextSequence(tokenizer, GenerationConfig(stop_token_ids=(newline,)), tokenizer.stop_ids, 100)
    for token_id in ids[:4]:
        sequence.push(token_id)
    assert sequence.result() == Generation("one", tuple(ids[:4]), "stop")


def test_a_text_may_be_complete_without_an_end_token() -> None:
    tokenizer = poem.tokenizer()
    sequence = TextSequence(tokenizer, GenerationConfig(stop=("two",)), (), 100)
    shown = "".join(sequence.push(token_id) for token_id in tokenizer.encode("one tw"))
    assert shown == "one "
    assert sequence.finish() == "tw"
    assert sequence.result().stop_reason == "end"
