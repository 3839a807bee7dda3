"""The dial, end to end: a run of so many minutes takes so many minutes, everything included."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from tests.finetune.small_runs import chats, write_base, write_rows

TOLERANCE = 0.2
"""Of the time; on a machine of its own a run ends within a twentieth (benchmarks/), here others may be at work."""


ATTEMPTS = 3
"""What overruns does so every time; a machine that stood still for some seconds did it once."""
START_SECONDS = 10.0
"""Of the interpreter and its imports, which come on top of the minutes."""


def owngpt(*arguments: str, minutes: float, folder: Path) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A command of so many minutes that ended with them, in one of a few attempts, and the folder below ``folder`` it ran in."""
    most = 60 * minutes * (1 + TOLERANCE) + START_SECONDS
    command = [sys.executable, "-m", "owngpt", *arguments, "--minutes", str(minutes)]
    for attempt in range(ATTEMPTS):
        inside = folder / f"attempt-{attempt}"
        inside.mkdir()
        start = time.monotonic()
        done = subprocess.run(command, cwd=inside, text=True, capture_output=True, timeout=200, check=False)
        seconds = time.monotonic() - start
        assert done.returncode == 0, done.stderr
        if seconds < most:
            return done, inside
    pytest.fail(f"{minutes} minutes took {seconds:.1f} s, {ATTEMPTS} times")


def write_corpus(folder: Path) -> None:
    """Half a megabyte in forty documents."""
    folder.mkdir()
    for number in range(40):
        lines = (
            f"In the year {number * 11 + line} the {line}th ship of house {number} brought {line * number} barrels, {line} men."
            for line in range(170)
        )
        (folder / f"{number}.txt").write_text("\n".join(lines), "utf-8")


@pytest.fixture(autouse=True)
def _machine_of_its_own() -> None:
    """Time can only be promised where it is there: the interpreter's files are in memory, the cores are not taken."""
    subprocess.run([sys.executable, "-c", "import owngpt.api"], check=True)
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    if busy > 2 * cores:
        pytest.skip(f"{busy:.1f} programs compete for {cores} cores")


@pytest.mark.slow
def test_a_run_of_some_minutes_ends_when_they_are_up(tmp_path: Path) -> None:
    write_corpus(tmp_path / "books")
    done, folder = owngpt("train", "../books", "--json", minutes=0.3, folder=tmp_path)
    result = json.loads(done.stdout)
    assert result["seconds"] > 18 * (1 - TOLERANCE), "the time given is used"
    assert result["output"] == "runs/books"
    assert 0 < result["score"]["bits_per_byte"] < 3
    with safe_open(folder / "runs" / "books" / "model.safetensors", "pt") as weights:
        assert "model.embed_tokens.weight" in weights.keys()  # noqa: SIM118 - not a dictionary


@pytest.mark.slow
def test_the_demo_trains_scores_writes_and_says_what_is_next(tmp_path: Path) -> None:
    done, folder = owngpt("demo", minutes=0.4, folder=tmp_path)
    assert (folder / "owngpt-demo" / "model.safetensors").exists()
    assert "bits per byte" in done.stdout
    assert done.stdout.count("\n--- ") == 3, "three completions"
    for verb in ("generate", "chat", "eval"):
        assert f"  owngpt {verb} owngpt-demo" in done.stdout
    assert "tokens/s" in done.stderr, "progress is shown while it trains"


@pytest.mark.slow
def test_a_fine_tuning_of_some_minutes_ends_in_them_with_its_report(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    write_rows(tmp_path / "faq.jsonl", chats(2_000))
    arguments = ("finetune", "../base", "../faq.jsonl", "-o", "out", "--patience", "1000", "--json")
    done, folder = owngpt(*arguments, minutes=0.5, folder=tmp_path)  # reading, measuring twice and the report are part of it
    result = json.loads(done.stdout)
    assert result["training"]["step"] > 10
    assert result["training"]["best_step"] is not None, "it looked at held-out examples on its way"
    page = (folder / "out" / "report.md").read_text("utf-8")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
    assert len(pictures) == 2
    assert all((folder / "out" / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
