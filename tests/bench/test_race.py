"""A side that fails is named and the others go on; what sides cannot do stays empty; tables show what was measured."""

from __future__ import annotations

import pytest

from owngpt.bench.race import Race, summary
from owngpt.bench.rival import Rival, SideFailedError
from owngpt.bench.side import SideSpec
from owngpt.bench.tables import NOTHING, spread, tables
from owngpt.bench.workload import QUICK


def test_a_side_that_cannot_open_is_named_and_nothing_else_stops(tmp_path):
    spec = SideSpec("owngpt broken", "owngpt", str(tmp_path / "nothing"), "bf16", 1, 64, 64, 1)
    told: list[str] = []
    race = Race([spec], QUICK, 320, 1, told.append, tuned=False)
    parts = race.run(["prefill", "idle", "memory"])
    first = next(parts)
    assert len(race.failures) == 1, "a part is handed on before the next begins"
    found = dict([first, *parts])
    assert found == {"prefill": {}, "idle": {}, "memory": {}}
    assert len(race.failures) == 2  # once for the parts that share a process, once for memory
    assert all("owngpt broken could not write a first token" in failure for failure in race.failures)
    assert any("owngpt broken" in line for line in told)


def test_a_wrong_spec_ends_the_process_and_its_last_words_are_told(tmp_path):
    spec = SideSpec("unheard of", "no such kind", str(tmp_path), "bf16", 1, 64, 64, 1)
    with pytest.raises(SideFailedError, match="no such kind"):
        Rival(spec, [1, 2, 3])


def test_tables_give_a_row_to_each_side_and_a_dash_to_what_it_lacks():
    figures = {"cold": summary([2.0, 1.0, 3.0]), "seen": summary([0.1]), "seen_to_cold": summary([0.05])}
    result = {
        "sizes": QUICK.to_dict(),
        "sides": {"a": {}, "b": {}},
        "parts": {"prefix": {"a": figures}},
        "read_bandwidth": [1e9],
    }
    ((title, columns, rows),) = tables(result)
    assert "128" in title
    assert len(columns) == 4
    assert rows == [("a", "2.000 (1.000–3.000)", "0.100", "5.0%"), ("b", NOTHING, NOTHING, NOTHING)]


def test_the_share_of_the_bandwidth_is_tokens_times_bytes():
    decode = {"1": {"a": {"tokens_per_second": summary([50.0])}}}
    result = {
        "sizes": QUICK.to_dict(),
        "sides": {"a": {"weight_bytes": 100_000_000, "read_bandwidth": 10e9}},
        "parts": {"decode": decode},
    }
    bandwidth = list(tables(result))[1]
    assert bandwidth[2] == [("a", "100", "5.00", "10.0", "50%")]


def test_a_single_round_shows_no_range():
    assert spread(summary([3.14159]), ".2f") == "3.14"
    assert spread(None, ".2f") == NOTHING
