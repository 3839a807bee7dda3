"""The picture shows what metrics.jsonl says."""

from __future__ import annotations

import json
from pathlib import Path

from owngpt.train.curve import draw_curve


def write_metrics(path: Path, steps: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            record = {"step": step, "tokens": step * 4096, "elapsed_seconds": step * 0.3, "bits_per_byte": 2 + 6 / step}
            record["split"] = "train"
            file.write(json.dumps(record) + "\n")
            if step % 10 == 0:
                file.write(json.dumps({**record, "bits_per_byte": 2.1 + 6 / step, "split": "validation"}) + "\n")


def test_a_curve_is_drawn_for_short_and_long_runs(tmp_path: Path) -> None:
    for steps in (1, 2, 30, 1000):
        write_metrics(tmp_path / "metrics.jsonl", steps)
        assert draw_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_drawn_before_the_first_line(tmp_path: Path) -> None:
    assert not draw_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "event": "skipped"}\n')
    assert not draw_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
