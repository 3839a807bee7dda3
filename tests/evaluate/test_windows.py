"""Sliding windows: every target once, with the history that was promised, and no batch larger than asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from owngpt.evaluate.windows import IGNORED, Window, batches, windows

lengths = st.integers(1, 12).flatmap(lambda context: st.tuples(st.just(context), st.integers(1, context)))


@given(count=st.integers(0, 60), sizes=lengths)
def test_every_token_but_the_first_is_scored_once_with_the_promised_history(count: int, sizes: tuple[int, int]) -> None:
    context_length, stride = sizes
    scored = []
    for window in windows(range(count), context_length=context_length, stride=stride):
        assert len(window.inputs) == len(window.targets) <= context_length
        assert [token + 1 for token in window.inputs] == list(window.targets)
        for index in range(window.first_scored, len(window.targets)):
            target = window.targets[index]
            assert index + 1 >= min(target, context_length - stride + 1)  # tokens of the window before the target
            scored.append(target)
    assert scored == list(range(1, count))


@given(sizes=st.lists(st.integers(1, 20), max_size=30), tokens=st.integers(1, 64))
def test_batches_hold_every_target_once_and_stay_small(sizes: list[int], tokens: int) -> None:
    pieces = [Window(range(size), range(100, 100 + size), size // 2) for size in sizes]
    expected = sum(size - size // 2 for size in sizes)
    found = rows = 0
    for inputs, targets in batches(pieces, tokens):
        assert inputs.shape == targets.shape
        assert inputs.numel() <= tokens or len(inputs) == 1
        scored = targets != IGNORED
        assert (inputs[scored] == targets[scored] - 100).all()
        found += int(scored.sum())
        rows += len(inputs)
    assert (found, rows) == (expected, len(sizes))
