"""A run that is killed at any instant and resumed ends with the same bits as one that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.forked_runs import ForkedRuns, kill

from owngpt.config.files import sha256_of_file
from owngpt.train import checkpoint

STEPS = 25


class Runs(ForkedRuns):
    """Trainings of the tiny model."""

    def __init__(self) -> None:
        super().__init__("fork_server.py")

    def train(self, folder: Path, *, resume: bool) -> int:
        """Starts a training in ``folder`` and returns its process id."""
        folder.mkdir(exist_ok=True)
        return self.start(f"{folder}\t{STEPS}\t{'--resume' if resume else ''}")


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The hash of the weights of a run that nobody disturbed, and how many seconds it took."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    start = time.monotonic()
    runs.train(folder, resume=False)
    assert runs.end() == 0, (folder / "log.txt").read_text()
    return sha256_of_file(folder / "model.safetensors"), time.monotonic() - start


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_instants_ends_with_the_same_bits(
    runs: Runs, undisturbed: tuple[str, float], tmp_path: Path, seed: int
) -> None:
    expected, seconds = undisturbed
    chance = random.Random(seed)
    folder, kills = tmp_path / "out", 0
    while True:
        process = runs.train(folder, resume=kills > 0)
        if kills < 4:
            time.sleep(chance.uniform(0.02, seconds / 2))
            kill(process)
            kills += 1
        status = runs.end()
        if status == 0:
            break
        assert status == -signal.SIGKILL, (folder / "log.txt").read_text()
    log = (folder / "log.txt").read_text()
    assert log.count("finished") == 1
    assert sha256_of_file(folder / "model.safetensors") == expected, log


def test_a_run_killed_while_it_saves_ends_with_the_same_bits(runs: Runs, undisturbed: tuple[str, float], tmp_path: Path) -> None:
    """Kills as soon as a staging folder is seen: in the middle of writing, hashing, syncing or renaming."""
    folder, checkpoints = tmp_path / "out", tmp_path / "out" / "run" / "checkpoints"
    caught = 0
    for attempt in range(4):
        process = runs.train(folder, resume=attempt > 0)
        deadline = time.monotonic() + 20
        already = set(checkpoint.checkpoints(checkpoints)[-1:])
        while time.monotonic() < deadline and not (folder / "model.safetensors").exists():
            moved_on = set(checkpoint.checkpoints(checkpoints)[-1:]) != already
            if moved_on and list(checkpoints.glob(f".step*{checkpoint.TEMPORARY_SUFFIX}")):
                break
        kill(process)
        assert runs.end() in (0, -signal.SIGKILL)
        caught += bool(list(checkpoints.glob(f".step*{checkpoint.TEMPORARY_SUFFIX}")))
    runs.train(folder, resume=True)
    assert runs.end() == 0, (folder / "log.txt").read_text()
    assert caught, "no kill fell into a save; the test did not test what it should"
    assert not list(checkpoints.glob(f".*{checkpoint.TEMPORARY_SUFFIX}"))
    assert sha256_of_file(folder / "model.safetensors") == undisturbed[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_same_bits(
    runs: Runs, undisturbed: tuple[str, float], tmp_path: Path, number: int
) -> None:
    folder = tmp_path / "out"
    process = runs.train(folder, resume=False)
    while not checkpoint.checkpoints(folder / "run" / "checkpoints"):
        time.sleep(0.005)
    os.kill(process, number)
    assert runs.end() != 0
    log = (folder / "log.txt").read_text()
    assert "TrainingInterrupted: interrupted at step" in log and f"Go on with: owngpt train --resume -o {folder}" in log
    runs.train(folder, resume=True)
    assert runs.end() == 0
    assert sha256_of_file(folder / "model.safetensors") == undisturbed[0]


def test_a_second_run_is_refused_while_the_first_lives(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = runs.train(folder, resume=False)
    while not (folder / "run" / "lock").exists() or not (folder / "run" / "lock").read_text():
        time.sleep(0.005)
    program = Path(__file__).parent.parent / "train" / "tiny_training.py"
    os.kill(process, signal.SIGSTOP)
    second = subprocess.run([sys.executable, str(program), str(folder), "5"], capture_output=True, text=True, check=False)
    os.kill(process, signal.SIGKILL)
    os.kill(process, signal.SIGCONT)
    runs.end()
    assert second.returncode == 1
    assert f"is in use by another run (process {process})" in second.stderr
