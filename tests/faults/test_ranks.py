"""torchrun with two ranks, from the command line to the model folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from owngpt.train.metrics import read_lines

SHAPE = ["--steps", "12", "--hidden-size", "32", "--layers", "1", "--context-length", "32", "--vocab-size", "300", "--seed", "3"]


def torchrun(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Two ranks of one command."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "owngpt"]
    return subprocess.run([*launcher, *arguments], cwd=folder, text=True, capture_output=True, timeout=250, check=False)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_lines(folder / "run" / "metrics.jsonl") if record.get("split") == "train"]


@pytest.mark.slow
def test_two_ranks_train_one_model_and_one_of_them_speaks(tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for number in range(30):
        lines = (f"In year {number * 7 + line} the {line}th ship of house {number} came home." for line in range(40))
        (books / f"{number}.txt").write_text("\n".join(lines), "utf-8")
    together = torchrun("train", "books", *SHAPE, "--batch-size", "4", "--quiet", "--json", folder=tmp_path)
    assert together.returncode == 0, together.stderr
    result = json.loads(together.stdout)
    assert (result["output"], result["plan"]["ranks"], result["training"]["tokens"]) == ("runs/books", 2, 12 * 8 * 32)
    assert len(losses(tmp_path / "runs" / "books")) > 1, "that they are those of one rank is in tests/train/test_parallel.py"
    resumed = torchrun("train", "--resume", "-o", "runs/books", "--quiet", "--json", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["score"] == result["score"]
    refused = torchrun("train", "books", "-o", "books", "--quiet", folder=tmp_path)
    assert refused.returncode != 0
    assert refused.stderr.count("owngpt: ") == 1 and "already holds" in refused.stderr
