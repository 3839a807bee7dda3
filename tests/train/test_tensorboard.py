"""TensorBoard's own reader finds what was written, without training having waited for its import."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from owngpt.train.tensorboard import TensorBoardLog


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_scalars_are_read_back(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path / "tensorboard")
    log.scalars(1, {"train/loss": 2.5, "train/learning_rate": 0.5})
    log.scalars(2, {"train/loss": 1.5})
    assert log.close() is None
    assert read_back(tmp_path / "tensorboard") == {"train/loss": [(1, 2.5), (2, 1.5)], "train/learning_rate": [(1, 0.5)]}


def test_a_resumed_run_replaces_the_steps_it_takes_again(tmp_path: Path) -> None:
    first = TensorBoardLog(tmp_path)
    for step in (1, 2, 3):
        first.scalars(step, {"loss": 10.0 + step})
    first.close()
    time.sleep(1.1)  # event files are read in the order of their names, which hold whole seconds
    second = TensorBoardLog(tmp_path)
    second.restart_after(1)
    second.scalars(2, {"loss": 22.0})
    second.close()
    assert read_back(tmp_path) == {"loss": [(1, 11.0), (2, 22.0)]}


def test_a_folder_that_cannot_be_made_is_told_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = TensorBoardLog(tmp_path / "file")
    log.scalars(1, {"loss": 1.0})
    assert "TensorBoard files could not be written" in (log.close() or "")


def test_training_waits_neither_for_the_import_nor_for_the_writing(tmp_path: Path) -> None:
    code = """
import sys, time, torch
from pathlib import Path
from owngpt.train.tensorboard import TensorBoardLog
log = TensorBoardLog(Path(sys.argv[1]))
log._handed_over = -1e9
start = time.perf_counter()
log.scalars(1, {"loss": 1.0})
print(time.perf_counter() - start)
log.close()
"""
    for folder in (tmp_path / "first", tmp_path / "second", tmp_path / "third"):  # the machine may be at something else once
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        assert read_back(folder) == {"loss": [(1, 1.0)]}
        if float(done.stdout) < 0.3:
            return
    pytest.fail("the import alone takes longer than 0.3 s, and training waited for it three times")
