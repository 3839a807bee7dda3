"""The baseline learns, and its score is a code length that no byte escapes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

TEXT = "the cat sees rain. a dog likes bread. my owl hears music.\n" * 60


def test_alphabet_charges_unknown_characters_and_keeps_known_ones() -> None:
    from textbook import UNICODE_CHARACTERS, Alphabet

    alphabet = Alphabet("abcabca" * 100)
    ids, unknown = alphabet.encode("ab猫c")

    assert ids.tolist() == [0, 1, 0, 2]
    assert unknown.tolist() == [False, False, True, False]
    share = 2**-alphabet.known_bits + (UNICODE_CHARACTERS - 3) * 2**-alphabet.escape_bits
    assert share == pytest.approx(1.0)  # known and unknown characters together are one distribution


def test_score_of_a_uniform_model_is_the_uniform_code() -> None:
    from textbook import Alphabet, Recipe, TextbookGPT, bits_per_byte

    alphabet = Alphabet(TEXT)
    model = TextbookGPT(len(alphabet), Recipe(), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embedding.weight.zero_()

    for length in (1, 2, 64, 65, 66, 96, 97, 98, 1000):
        text = TEXT[:length]
        bits, size = bits_per_byte(model, alphabet, [text])
        assert size == length
        assert bits == pytest.approx(math.log2(len(alphabet)) + alphabet.known_bits, rel=1e-5)


def test_held_out_bits_per_byte_fall_with_training() -> None:
    from textbook import Alphabet, Recipe, TextbookGPT, bits_per_byte, train

    alphabet = Alphabet(TEXT)
    ids = torch.from_numpy(alphabet.encode(TEXT)[0])
    held = [TEXT[30:600]]
    untrained = TextbookGPT(len(alphabet), Recipe(), torch.Generator().manual_seed(0))
    seen: list[float] = []
    start = time.process_time()  # what other tests take does not count

    def watch(_: TextbookGPT, elapsed: float) -> bool:
        seen.append(elapsed)
        return time.process_time() - start > 6.0

    run = train(ids, len(alphabet), 60.0, watch=watch, every=0.5)
    assert run.steps > 5
    assert seen[-1] == run.seconds < 60  # the watcher ended it
    assert bits_per_byte(run.model, alphabet, held)[0] < 0.9 * bits_per_byte(untrained, alphabet, held)[0]


def test_command_writes_its_result(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "held.txt").write_text("my cat likes rain, 猫.\n", encoding="utf-8")
    program = Path(__file__).parents[2] / "benchmarks" / "textbook.py"
    command = [sys.executable, str(program), "--train", str(tmp_path / "train.txt"), "--held", str(tmp_path / "held.txt")]
    subprocess.run([*command, "--seconds", "0.3", "--json", str(tmp_path / "result.json")], check=True, timeout=120)

    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["bytes"] == len("my cat likes rain, 猫.\n".encode())
    assert result["bits_per_byte"] > 0
    assert result["seconds"] >= 0.3
