"""metrics.jsonl: one whole object a line, and nothing of steps that will be taken again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from owngpt.errors import StorageError
from owngpt.train.metrics import JsonLines, bits_per_byte, read_lines


def test_each_record_is_one_line_of_json(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "run" / "metrics.jsonl")
    log.append({"step": 1, "loss": 2.5, "text": "诗\n行"})
    log.append({"step": 2, "loss": math.nan})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 2.5, "text": "诗\n行"}, {"step": 2, "loss": None}]


def test_lines_after_the_resumed_step_are_dropped_with_a_cut_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)) + '{"step": 5, "lo')
    log = JsonLines(path)
    log.truncate_after(3)
    log.append({"step": 4, "again": True})
    assert list(read_lines(path)) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_truncating_a_file_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    JsonLines(tmp_path / "none.jsonl").truncate_after(3)
    assert list(tmp_path.iterdir()) == []


def test_a_refusing_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        JsonLines(tmp_path / "file" / "metrics.jsonl").append({"step": 1})


def test_a_uniform_guess_over_bytes_is_eight_bits() -> None:
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8.0)
    assert bits_per_byte(math.log(256), 4.0) == pytest.approx(2.0)
