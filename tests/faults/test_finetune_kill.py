"""A fine-tuning that is killed at any instant and resumed ends with the same bits as one that never was, by every method."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.faults.forked_runs import ForkedRuns, kill
from tests.finetune.small_runs import SHAPE, rows_for, write_base, write_rows

from owngpt.config.files import sha256_of_file
from owngpt.config.finetuning import FinetuneConfig
from owngpt.config.run_record import RunRecord
from owngpt.finetune.start import finetune
from owngpt.train import checkpoint

STEPS = 12
WAYS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft", "lora_dropout": 0.1, "accumulation": 2},
    "sft-dora": {"method": "sft", "dora": True},
    "sft-full": {"method": "sft", "lora": False},
    "dpo": {"method": "dpo"},
    "dpo-full": {"method": "dpo", "lora": False, "label_smoothing": 0.1},
    "ipo": {"method": "ipo"},
    "orpo": {"method": "orpo"},
    "classify": {"method": "classify"},
    "classify-full": {"method": "classify", "lora": False},
}


@pytest.fixture(scope="module")
def runs() -> Iterator[ForkedRuns]:
    runs = ForkedRuns("finetune_fork_server.py")
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def describe(folder: Path, base: Path, way: str) -> None:
    """A run that has not begun, and saves a checkpoint after every step."""
    options = {**SHAPE, "context_length": 128, **WAYS[way], "steps": STEPS}
    rows = write_rows(folder.with_suffix(".jsonl"), rows_for(WAYS[way]["method"]))
    plan = finetune(base, rows, output=folder, dry_run=True, quiet=True, **options).plan
    plan["course"] |= {"checkpoint_seconds": 0.0, "evaluation_interval": 5}
    (folder / "run").mkdir(parents=True)
    settings = asdict(FinetuneConfig(**options))
    RunRecord([str(rows)], settings, plan, verb="finetune", model=str(base)).write(folder / "run" / "run.yaml")


def weights(folder: Path) -> str:
    file = next(file for name in ("adapter_model", "model") if (file := folder / f"{name}.safetensors").exists())
    return sha256_of_file(file)


def undisturbed(runs: ForkedRuns, folder: Path, base: Path, way: str) -> tuple[str, float]:
    """The hash of what a run left that nobody disturbed, and how many seconds it took. It stays ready to be run again."""
    describe(folder, base, way)
    fresh = shutil.copytree(folder, folder.with_name("fresh"))
    fresh.with_suffix(".log").touch()
    start = time.monotonic()
    runs.start(str(folder))
    assert runs.end() == 0, folder.with_suffix(".log").read_text()
    return weights(folder), time.monotonic() - start


@pytest.mark.parametrize("way", WAYS)
def test_a_run_killed_in_its_middle_ends_with_the_same_bits(runs: ForkedRuns, base: Path, tmp_path: Path, way: str) -> None:
    expected, _ = undisturbed(runs, tmp_path / "whole", base, way)
    folder = tmp_path / "fresh"
    process = runs.start(str(folder))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = checkpoint.checkpoints(folder / "run" / "checkpoints")
        if found and checkpoint.step_of(found[-1]) >= STEPS // 2:
            break
        time.sleep(0.002)
    kill(process)
    assert runs.end() in (0, -signal.SIGKILL)
    runs.start(str(folder))
    log = folder.with_suffix(".log")
    assert runs.end() == 0, log.read_text()
    assert weights(folder) == expected, log.read_text()
    assert log.read_text().count("measuring what the model does before") == 1, "a resumed run keeps what was measured"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_at_random_instants_ends_with_the_same_bits(runs: ForkedRuns, base: Path, tmp_path: Path, seed: int) -> None:
    expected, seconds = undisturbed(runs, tmp_path / "whole", base, "sft")
    chance, folder, kills = random.Random(seed), tmp_path / "fresh", 0
    while True:
        process = runs.start(str(folder))
        if kills < 6:
            time.sleep(chance.uniform(0.02, seconds / 2))
            kill(process)
            kills += 1
        status = runs.end()
        if status == 0:
            break
        assert status == -signal.SIGKILL, folder.with_suffix(".log").read_text()
    assert weights(folder) == expected
    assert (folder / "report.md").exists() and (folder / "README.md").exists()
