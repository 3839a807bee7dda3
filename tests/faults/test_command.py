"""The command itself, interrupted: it saves, says how to go on, exits 130, and ends with the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from owngpt.config.files import sha256_of_file

SMALL = ["--steps", "40", "--seed", "3", "--hidden-size", "64", "--layers", "2", "--context-length", "64"]


def start(*arguments: str) -> subprocess.Popen[str]:
    """One ``owngpt train`` process, its words collected."""
    command = [sys.executable, "-c", "from owngpt.cli.main import main; raise SystemExit(main())", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def write_corpus(folder: Path) -> Path:
    """Thirty small documents that differ."""
    folder.mkdir()
    for number in range(30):
        lines = (
            f"In year {number * 7 + line} the {line}th ship of house {number} came home with {line * number} barrels."
            for line in range(40)
        )
        (folder / f"{number}.txt").write_text("\n".join(lines), "utf-8")
    return folder


@pytest.mark.slow
def test_an_interrupted_command_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """By Ctrl-C; that other signals end a run alike is in test_kill.py."""
    corpus = write_corpus(tmp_path / "corpus")
    whole = start(str(corpus), "-o", str(tmp_path / "whole"), *SMALL)
    words = whole.communicate()[0]
    assert whole.returncode == 0, words
    parts = start(str(corpus), "-o", str(tmp_path / "parts"), *SMALL)
    metrics = tmp_path / "parts" / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 5) and parts.poll() is None:
        time.sleep(0.01)
    parts.send_signal(signal.SIGINT)
    words = parts.communicate()[0]
    assert parts.returncode == 130, words
    assert f"owngpt train --resume -o {tmp_path / 'parts'}" in words
    assert "Traceback" not in words
    again = start("--resume", "-o", str(tmp_path / "parts"))
    words = again.communicate()[0]
    assert again.returncode == 0, words
    assert sha256_of_file(tmp_path / "parts" / "model.safetensors") == sha256_of_file(tmp_path / "whole" / "model.safetensors")
