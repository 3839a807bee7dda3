"""Calls are rounded up to few shapes, and nothing that fills them up looks like a text."""

from __future__ import annotations

import pytest

from owngpt.engine.layout import Part, arrange


def texts(writers: int, prompt: int) -> list[Part]:
    """Texts that write a token each, and one that reads a piece of its prompt."""
    return [*(Part([7], 40 + text, (1, 2)) for text in range(writers)), Part(list(range(prompt)), 0, (3,))]


def test_a_prompt_beside_any_of_nine_to_fifteen_writers_is_one_of_two_shapes():
    shapes = {arrange(texts(writers, 48 - writers)).shape for writers in range(9, 16)}
    assert {shape.rows for shape in shapes} == {12, 16}
    assert {(shape.tokens, shape.segments) for shape in shapes} == {(48, 16)}
    assert len(shapes) == 2


def test_empty_segments_belong_to_nobody():
    layout = arrange(texts(9, 23))
    assert [segment.tokens for segment in layout.segments] == [1] * 9 + [23] + [0] * 6
    assert sum(segment.tokens for segment in layout.segments) == layout.shape.tokens == 32


@pytest.mark.parametrize("writers", [1, 2, 3, 7, 13, 14])
def test_a_call_with_a_prompt_never_has_as_many_segments_as_tokens(writers: int):
    """As many of both say that all are single tokens, which attend in less room."""
    for prompt in (2, 3, 16):
        shape = arrange(texts(writers, prompt)).shape
        assert writers + 1 <= shape.segments < shape.tokens


def test_single_tokens_are_filled_up_with_single_tokens():
    layout = arrange([Part([7], 40, (1, 2))] * 5)
    assert (layout.shape.tokens, layout.shape.segments, layout.shape.rows) == (8, 8, 8)
    assert layout.wanted == [0, 1, 2, 3, 4]
