"""Where a run goes, and that nothing which is there already is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from owngpt.errors import DataError, UsageError
from owngpt.train.output import check_output, default_output, folder_of_checkpoint, removed_on_failure


def test_a_run_is_named_after_its_first_source_and_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my books").mkdir()
    (tmp_path / "plays.txt").write_text("To be", "utf-8")
    assert default_output(["my books/", "plays.txt"], None) == Path("runs/my books")
    assert default_output(["plays.txt"], None) == Path("runs/plays")
    assert default_output(["."], None) == Path("runs") / tmp_path.name
    assert default_output([], "sotu") == Path("runs/sotu")
    (tmp_path / "runs" / "plays").mkdir(parents=True)
    (tmp_path / "runs" / "plays-2").write_text("a file", "utf-8")
    assert default_output(["plays.txt"], None) == Path("runs/plays-3")


def test_a_checkpoint_tells_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert folder_of_checkpoint(Path("out/run/checkpoints/step-00000007")) == Path("out")
    assert folder_of_checkpoint(tmp_path / "a b/run/checkpoints/step-00000007") == tmp_path / "a b"
    monkeypatch.chdir(tmp_path)
    assert folder_of_checkpoint(Path("run/checkpoints/step-00000007")).resolve() == tmp_path.resolve()
    with pytest.raises(UsageError, match="--resume-from takes OUT/run/checkpoints/step-…"):
        folder_of_checkpoint(Path("out/model.safetensors"))


def test_a_folder_with_something_else_is_refused_and_named(tmp_path: Path) -> None:
    check_output(tmp_path / "new")
    (tmp_path / "run").mkdir()
    check_output(tmp_path)
    (tmp_path / "letter.txt").write_text("mine", "utf-8")
    with pytest.raises(UsageError, match="already holds letter.txt"):
        check_output(tmp_path)
    with pytest.raises(UsageError, match="is a file; --output must name a folder"):
        check_output(tmp_path / "letter.txt")


def test_a_refused_run_leaves_no_folders_but_keeps_those_that_were_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there" / "runs" / "books", tmp_path / "there"):
        with pytest.raises(DataError), removed_on_failure(folder, folder / "run" / "run.yaml"):
            (folder / "run").mkdir(parents=True)
            raise DataError("no text")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["run"]


def test_a_run_that_was_described_stays_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(DataError), removed_on_failure(tmp_path / "out", tmp_path / "out" / "run.yaml"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "run.yaml").write_text("sources: []", "utf-8")
        raise DataError("later")
    assert (tmp_path / "out" / "run.yaml").exists()
