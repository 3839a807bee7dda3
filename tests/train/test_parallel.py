"""Two ranks learn what one would have learned, and neither waits for a rank that is gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from owngpt.errors import UsageError
from owngpt.train.metrics import read_lines
from owngpt.train.parallel import BUCKET_VALUES, Ranks, _buckets

PROGRAM = Path(__file__).parent / "parallel_training.py"


def start(folder: Path, size: int, batch_size: int, *more: str) -> list[subprocess.Popen[str]]:
    """The ranks of one training, as torchrun would start them."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(PROGRAM), str(folder), "15", str(batch_size), *more]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(size)
    ]  # fmt: skip


def losses(folder: Path, split: str) -> list[float]:
    return [record["loss"] for record in read_lines(folder / "metrics.jsonl") if record.get("split") == split]


def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    alone, together = start(tmp_path / "alone", 1, 4), start(tmp_path / "together", 2, 2)
    for process in alone + together:
        words = process.communicate(timeout=120)[0]
        assert process.returncode == 0, words
    for split in ("train", "validation"):
        one, two = losses(tmp_path / "alone", split), losses(tmp_path / "together", split)
        assert len(one) == {"train": 15, "validation": 3}[split]
        assert two == pytest.approx(one, rel=1e-3), split
    assert losses(tmp_path / "alone", "train")[-1] < losses(tmp_path / "alone", "train")[0] - 1
    first, second = (load_file(tmp_path / "together" / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first), "ranks must hold the same bits"


def test_a_rank_that_dies_ends_the_run_with_a_message(tmp_path: Path) -> None:
    processes = start(tmp_path / "run", 2, 2, "9")
    words = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, -9], words
    assert "another rank of this run has ended" in words[0] and "--resume" in words[0]


def test_a_follower_does_not_outlive_the_leader(tmp_path: Path) -> None:
    leader, follower = start(tmp_path / "run", 2, 2)
    while not (tmp_path / "run" / "metrics.jsonl").exists() and leader.poll() is None:
        time.sleep(0.01)
    leader.kill()
    leader.communicate()
    words = follower.communicate(timeout=60)[0]
    assert follower.returncode in (0, 1), words  # 0: it was all over before the signal came
    assert "Traceback" not in words


def test_one_process_is_no_parallel_run() -> None:
    assert Ranks.from_environment({}) is None
    assert Ranks.from_environment({"WORLD_SIZE": "1", "RANK": "0"}) is None


def test_an_incomplete_environment_is_named() -> None:
    with pytest.raises(UsageError, match="RANK is ''.*torchrun"):
        Ranks.from_environment({"WORLD_SIZE": "2"})


def test_buckets_hold_every_gradient_once_and_stay_small() -> None:
    gradients = [torch.empty(count, device="meta") for count in (3, BUCKET_VALUES - 3, 1, 2 * BUCKET_VALUES, 5)]
    buckets = list(_buckets(gradients))
    assert [[len(gradient) for gradient in bucket] for bucket in buckets] == [
        [3, BUCKET_VALUES - 3], [1], [2 * BUCKET_VALUES], [5]
    ]  # fmt: skip
