"""`owngpt tokenizer train` and `report` on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from owngpt.cli.main import main

TEXT = "床前明月光，疑是地上霜。\nThe moon before my bed is bright.\n" * 40


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_a_trained_tokenizer_is_reported_as_one_json_object(tmp_path, source, capsys):
    folder = tmp_path / "tokenizer"
    assert main(["tokenizer", "train", str(source), "-o", str(folder), "--vocab-size", "300", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["vocab_size"] <= 300
    assert (folder / "tokenizer.json").exists()
    assert main(["tokenizer", "report", str(folder), str(source), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"]["bytes"] == len(TEXT.encode("utf-8"))
    assert report["total"]["bytes_per_token"] > 1.5


def test_the_report_is_a_table_for_people(tmp_path, source, capsys):
    folder = tmp_path / "tokenizer"
    assert main(["tokenizer", "train", str(source), "-o", str(folder), "--kind", "byte"]) == 0
    assert main(["tokenizer", "report", str(folder), str(source)]) == 0
    out = capsys.readouterr().out
    assert "bytes/token" in out
    assert "{" not in out


def test_text_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["tokenizer", "train", str(tmp_path / "absent"), "-o", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert "absent" in err
    assert err.count("\n") == 1
