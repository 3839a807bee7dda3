"""`owngpt data prepare`, `train` and what they leave behind, from the command line, on a small real text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from owngpt.cli.main import main

SHAPE = ["--layers", "1", "--hidden-size", "32", "--context-length", "32", "--batch-size", "4", "--vocab-size", "300"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty documents of different words."""
    folder = tmp_path_factory.mktemp("books")
    for chapter in range(20):
        lines = [f"In chapter {chapter} of the book, sentence {line} tells of {line * chapter + 7} ships." for line in range(40)]
        (folder / f"chapter-{chapter}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_prepared_data_is_reported_as_json_and_for_people(source, tmp_path, capsys):
    folder = str(tmp_path / "data")
    assert main(["data", "prepare", str(source), "-o", folder, "--vocab-size", "300", "--json"]) == 0
    prepared = json.loads(capsys.readouterr().out)
    assert prepared["report"]["documents"] > 0
    assert prepared["train_tokens"] > prepared["validation_tokens"] > 0
    assert main(["data", "report", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == prepared["report"]
    assert main(["data", "report", folder]) == 0
    assert "documents" in capsys.readouterr().out


def test_a_trained_folder_is_scored_and_writes(source, tmp_path, capsys):
    folder = str(tmp_path / "model")
    assert main(["train", str(source), "-o", folder, "--steps", "3", *SHAPE, "--quiet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["output"] == folder
    assert 0 < result["score"]["bits_per_byte"] < 9
    assert main(["generate", folder, "--prompt", "In chapter", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("In chapter")
    files = [str(source / f"chapter-{number}.txt") for number in (1, 2)]
    assert main(["eval", folder, "--data", *files, "--json"]) == 0
    after_one_flag = json.loads(capsys.readouterr().out)
    assert main(["eval", folder, "--data", files[0], "--data", files[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == after_one_flag
    assert after_one_flag["documents"] == 2


def test_the_next_commands_can_be_typed_as_they_are(source, tmp_path, capsys):
    folder = str(tmp_path / "my first model")
    assert main(["train", str(source), "-o", folder, "--steps", "1", *SHAPE, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert f"owngpt chat '{folder}'" in captured.out
    assert captured.err == ""


def test_a_run_is_repeated_from_its_own_description(source, tmp_path, capsys):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert main(["train", str(source), "-o", first, "--steps", "2", *SHAPE, "--quiet"]) == 0
    assert main(["train", "--config", f"{first}/run/run.yaml", "-o", second, "--quiet"]) == 0
    weights = [(Path(folder) / "model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]
    (tmp_path / "broken.yaml").write_text("sources: 3\nsettings: {}\nplan: {}\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["train", "--config", str(tmp_path / "broken.yaml"), "-o", str(tmp_path / "third")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "broken.yaml" in err and "sources" in err


def test_a_folder_that_holds_something_else_is_left_alone(source, tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("mine", encoding="utf-8")
    assert main(["train", str(source), "-o", str(tmp_path), "--steps", "1", *SHAPE]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "letter.txt" in err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_dry_run_prints_the_plan_and_trains_nothing(source, tmp_path, capsys):
    folder = tmp_path / "model"
    settings = tmp_path / "settings.yaml"
    settings.write_text("steps: 5\nlayers: 1\nhidden-size: 32\ncontext_length: 32\n", encoding="utf-8")
    assert main(["train", str(source), "-o", str(folder), "--config", str(settings), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "1 layers of width 32" in out
    assert "Why:" in out
    assert not folder.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, ["nowhere"]), (b"", ["empty"]), (bytes(range(256)) * 40, ["binary"])],
    ids=["absent", "empty", "binary"],
)
def test_text_that_cannot_be_used_is_named_in_one_sentence(tmp_path, capsys, content, words):
    path = tmp_path / "nowhere.txt"
    if content is not None:
        path.write_bytes(content)
    assert main(["train", str(path), "-o", str(tmp_path / "model"), "--steps", "1", "--quiet"]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    sentences = [line for line in captured.err.splitlines() if line.startswith("owngpt: ")]
    assert len(sentences) == 1
    for word in words:
        assert word in sentences[0]
