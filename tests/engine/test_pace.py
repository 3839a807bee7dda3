"""Prompts join writers in steps that readers do not notice, and quickly where many wait."""

from __future__ import annotations

from owngpt.engine.layout import TILE, rounded
from owngpt.engine.pace import CROWD, LARGEST_PIECE, SLOWDOWN, Pace


def seconds(rows: int) -> float:
    """A machine that needs 20 ms for a tile of rows and 10 ms for each further one."""
    return 0.010 + 0.010 * -(-rows // TILE)


def settled(writers: int) -> Pace:
    pace = Pace()
    for _ in range(50):
        pace.took(writers, writers, seconds(writers))
        tokens = writers + pace.budget(writers, 1)
        pace.took(writers, tokens, seconds(tokens))
    return pace


def test_alone_a_prompt_goes_in_the_largest_pieces() -> None:
    assert Pace().budget(0, 1) == LARGEST_PIECE


def test_a_step_with_a_piece_takes_hardly_longer_than_readers_are_used_to() -> None:
    for writers in (1, 8, 20, 60):
        budget = settled(writers).budget(writers, 1)
        smallest = -(-(writers + TILE // 2) // TILE) * TILE
        assert seconds(writers + budget) <= max(SLOWDOWN * seconds(writers), seconds(smallest))
        assert budget > 0


def test_pieces_fill_whole_tiles() -> None:
    for writers in range(1, 70):
        assert (writers + settled(writers).budget(writers, 1)) % TILE == 0


def test_where_every_row_costs_the_same_pieces_are_smaller_and_none_of_their_rows_is_lost() -> None:
    for writers in range(1, 70):
        fine, coarse = Pace(grain=4), Pace()
        for pace in (fine, coarse):
            for _ in range(50):
                pace.took(writers, writers, 0.001 * writers)
                rows = rounded(writers + pace.budget(writers, 1))
                pace.took(writers, rows, 0.001 * rows)
        piece = fine.budget(writers, 1)
        assert piece >= 4
        assert rounded(writers + piece) == writers + piece
        assert piece <= coarse.budget(writers, 1)
    assert Pace(grain=4).budget(8, 1) == 4 < Pace().budget(8, 1) == 8


def test_rows_that_seemed_to_cost_nothing_do_not_let_in_far_more() -> None:
    for grain in (4, TILE):
        pace = Pace(grain=grain)
        pace.took(3, rounded(7), 0.010)
        for _ in range(10):
            pace.took(7, 7, 0.010)  # computed as eight rows
        assert pace.budget(7, 1) <= 2 * TILE


def test_a_faster_machine_takes_more_at_a_time() -> None:
    slow, quick = settled(8), Pace()
    for _ in range(50):
        quick.took(8, 8, 0.020)
        tokens = 8 + quick.budget(8, 1)
        quick.took(8, tokens, 0.018 + 0.0001 * tokens)
    assert quick.budget(8, 1) > slow.budget(8, 1)


def test_a_crowd_is_let_in_at_full_speed() -> None:
    pace = settled(8)
    assert pace.budget(8, CROWD + 1) == LARGEST_PIECE - 8 > pace.budget(8, CROWD)
