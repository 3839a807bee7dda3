"""What a person sees of the stages: a bar on a terminal, few lines elsewhere, and every stage from nothing to all."""

from __future__ import annotations

import io
import re
from itertools import count, groupby
from pathlib import Path

import pytest
from texts import english

from owngpt.data.prepare import prepare
from owngpt.data.progress import COMPARING, DIVIDING, LEARNING, READING, TOKENIZING, Stage, shown_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_every_stage_goes_from_nothing_to_all_in_order(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(12):
        (tmp_path / "in" / f"{seed}.txt").write_text(english(30_000, seed))
    told: list[tuple[str, int, int, str]] = []
    prepare([tmp_path / "in"], tmp_path / "out", vocab_size=300, progress=lambda *values: told.append(values))
    stages = [(stage, list(calls)) for stage, calls in groupby(told, key=lambda values: values[0])]
    assert [stage for stage, _ in stages] == [READING, COMPARING, DIVIDING, LEARNING, TOKENIZING]
    for stage, calls in stages:
        done, totals, units = ([call[place] for call in calls] for place in (1, 2, 3))
        assert done[0] == 0 and done == sorted(done) and done[-1] == totals[0] and len(set(totals)) == 1
        assert set(units) == {"characters" if stage == LEARNING else "bytes"}
    assert stages[0][1][0][2] == sum(path.stat().st_size for path in (tmp_path / "in").iterdir())


def test_a_stage_without_work_and_one_that_fails_tell_no_end() -> None:
    told: list[int] = []
    with Stage(lambda *values: told.append(values[1]), READING, 0) as stage:
        stage.add(5)
    assert told == []
    with pytest.raises(ValueError, match="broken"), Stage(lambda *values: told.append(values[1]), READING, 10) as stage:
        stage.add(4)
        raise ValueError("broken")
    assert told == [0, 4]


def test_without_a_terminal_there_is_a_line_every_ten_seconds() -> None:
    stream, seconds = io.StringIO(), count()
    with shown_progress(stream=stream, clock=lambda: float(next(seconds))) as progress:
        assert progress is not None
        for done in range(31):
            progress(READING, done * 10**6, 30 * 10**6, "bytes")
        progress(LEARNING, 0, 100, "characters")
        progress(LEARNING, 100, 100, "characters")
    assert stream.getvalue().splitlines() == [
        "reading text: 33% of 30.0 MB, 1.0 MB/s, 0:20 left",
        "reading text: 67% of 30.0 MB, 1.0 MB/s, 0:10 left",
    ]


def test_on_a_terminal_a_bar_is_drawn_and_wiped() -> None:
    stream, seconds = Terminal(), count()
    with shown_progress(stream=stream, clock=lambda: float(next(seconds))) as progress:
        assert progress is not None
        for done in (0, 20, 50):
            progress(TOKENIZING, done, 100, "bytes")
        assert re.search(r"tokenizing .*50% of 100 bytes, 25 bytes/s, 0:02 left", stream.getvalue())
        progress(TOKENIZING, 100, 100, "bytes")
    assert stream.getvalue().endswith("\x1b[2K")  # the line is empty again


def test_quiet_shows_nothing() -> None:
    stream = Terminal()
    with shown_progress(quiet=True, stream=stream) as progress:
        assert progress is None
    assert stream.getvalue() == ""
