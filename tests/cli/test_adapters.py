"""Adapters, rolling texts and guesses from the command line: `generate`, `chat`, `eval`, `export`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from tests.formats.adapters import write_adapter, write_base

import owngpt
from owngpt.cli.main import main
from owngpt.text.training import train_tokenizer

GREEDY = ["--temperature", "0", "--max-new-tokens", "12"]
PROMPT = ["--prompt", "The cat sat. The cat"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_base(home / "base")
    write_base(home / "small", seed=3)
    write_adapter(home / "adapter", "../base")
    return home


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[int]:
    assert main(["generate", *arguments, *PROMPT, *GREEDY, "--ignore-end", "--dtype", "float32", "--json"]) == 0
    (generation,) = json.loads(capsys.readouterr().out)["generations"]
    assert generation["stop_reason"] == "length"
    return generation["token_ids"]  # type: ignore[no-any-return]


def test_generate_writes_with_an_adapter_named_either_way(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = written(capsys, str(home / "adapter"))
    assert alone == written(capsys, str(home / "base"), "--adapter", str(home / "adapter"))
    assert alone != written(capsys, str(home / "base"))


def test_guesses_change_no_text(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = written(capsys, str(home / "base"))
    assert written(capsys, str(home / "base"), "--speculate") == plain
    assert written(capsys, str(home / "base"), "--draft", str(home / "small")) == plain


def test_a_draft_of_another_tokenizer_is_one_sentence(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_base(tmp_path / "other", tokenizer=train_tokenizer(["abc " * 40], kind="char"))
    assert main(["generate", str(home / "base"), *PROMPT, *GREEDY, "--draft", str(other)]) == 2
    assert "another tokenizer" in capsys.readouterr().err


def test_a_text_stops_or_rolls_where_the_context_is_full(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for choice in ("stop", "roll"):
        options = ["--max-new-tokens", "100", "--temperature", "0", "--ignore-end", "--on-full", choice, "--json"]
        assert main(["generate", str(home / "base"), *PROMPT, *options]) == 0
        (generation,) = json.loads(capsys.readouterr().out)["generations"]
        found[choice] = (len(generation["token_ids"]), generation["stop_reason"])
    assert found == {"stop": (64 - 20, "context"), "roll": (100, "length")}
    assert main(["generate", str(home / "base"), *PROMPT, "--on-full", "fall"]) == 2
    assert "fall" in capsys.readouterr().err


def test_chat_takes_the_same_options(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat sat\n"))
    options = [
        "--adapter",
        str(home / "adapter"),
        "--on-full",
        "roll",
        "--speculate",
        "--max-new-tokens",
        "90",
        "--temperature",
        "0",
    ]
    assert main(["chat", str(home / "base"), *options, "--ignore-end"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("The cat sat")
    assert "cut at --max-new-tokens" in captured.err


def test_eval_scores_an_adapter(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat.\n" * 20)
    scores = []
    for arguments in ([str(home / "adapter")], [str(home / "base"), "--adapter", str(home / "adapter")], [str(home / "base")]):
        assert main(["eval", *arguments, "--data", str(text), "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["loss"])
    assert scores[0] == scores[1] != scores[2]


def test_export_merges(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(home / "adapter"), "--merge", "-o", str(tmp_path / "plain")]) == 0
    assert main(["export", str(home / "adapter"), "--format", "gguf", "--dtype", "float32", "-o", str(tmp_path / "m.gguf")]) == 0
    ids = torch.arange(30)[None]
    expected = owngpt.load(home / "adapter").logits(ids)
    for path in (tmp_path / "plain", tmp_path / "m.gguf"):
        torch.testing.assert_close(owngpt.load(path).logits(ids), expected, atol=1e-4, rtol=1e-4)
    capsys.readouterr()
    assert main(["export", str(home / "base"), "--merge", "-o", str(tmp_path / "none")]) == 2
    assert "is no adapter" in capsys.readouterr().err
    assert main(["export", str(home / "base"), "-o", str(tmp_path / "none")]) == 2
    assert "--format is missing" in capsys.readouterr().err
