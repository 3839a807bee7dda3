"""A conversation that outgrows the context loses its oldest turns, never its system prompt or its last question."""

from __future__ import annotations

from owngpt.text.turns import latest_turns

SYSTEM = {"role": "system", "content": "s"}
TURNS = [
    {"role": "user", "content": "1"}, {"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"},
    {"role": "user", "content": "2"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "3"},
]  # fmt: skip


def at_most(limit: int):
    return lambda messages: len(messages) <= limit


def test_what_fits_is_kept() -> None:
    assert latest_turns([SYSTEM, *TURNS], at_most(7)) == ([SYSTEM, *TURNS], 0)


def test_whole_turns_are_dropped_and_the_system_prompt_stays() -> None:
    assert latest_turns([SYSTEM, *TURNS], at_most(6)) == ([SYSTEM, *TURNS[3:]], 1)
    assert latest_turns([SYSTEM, *TURNS], at_most(3)) == ([SYSTEM, TURNS[5]], 2)
    assert latest_turns(TURNS, at_most(1)) == ([TURNS[5]], 2)


def test_turns_that_were_dropped_before_stay_dropped() -> None:
    assert latest_turns([SYSTEM, *TURNS], at_most(99), at_least=1) == ([SYSTEM, *TURNS[3:]], 1)


def test_the_last_question_stays_even_if_it_does_not_fit() -> None:
    assert latest_turns([SYSTEM, *TURNS], at_most(0)) == ([SYSTEM, TURNS[5]], 2)
    assert latest_turns([SYSTEM], at_most(0)) == ([SYSTEM], 0)
