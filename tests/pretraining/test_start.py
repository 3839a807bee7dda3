"""Runs that begin, go on and repeat, as Python starts them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from owngpt.config.files import sha256_of_file
from owngpt.config.run_record import read_configuration
from owngpt.errors import CheckpointError, FolderBusyError, OwnGPTError, UsageError
from owngpt.pretraining import train
from owngpt.train.checkpoint import MANIFEST, TENSORS, VALUES, checkpoints, damage
from owngpt.train.lock import RunLock


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "model"
    train(source, output=folder, steps=6, quiet=True, layers=1, hidden_size=32, context_length=32, batch_size=4, vocab_size=300)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "copy")


class Terminal(io.StringIO):
    """Something that a person looks at."""

    def isatty(self) -> bool:
        return True


def test_a_run_without_an_output_goes_to_a_folder_that_is_said(
    source: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(source, steps=1, **tiny)
    assert result.output == Path("runs/books")
    assert (tmp_path / "runs" / "books" / "model.safetensors").exists()
    words = capsys.readouterr().err
    assert "the model will be in runs/books" in words
    assert "reading text: " in words and "held out" in words


def test_a_quiet_run_says_nothing(source: Path, tiny: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(source, output=tmp_path / "out", steps=2, quiet=True, **tiny)
    captured = capfd.readouterr()
    assert captured.err == "" and captured.out == ""


def test_preparation_shows_its_progress_on_a_terminal(
    source: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train(source, output=tmp_path / "out", steps=1, dry_run=True, **tiny)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    for stage in ("reading text", "training the tokenizer", "tokenizing"):
        assert f"{stage} ━" in shown, stage


def test_a_dry_run_leaves_the_output_alone(source: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    result = train(source, output=tmp_path / "new" / "out", steps=5, dry_run=True, quiet=True, **tiny)
    assert result.plan["course"]["steps"] == 5
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OwnGPTError, match="empty"):
        train(tmp_path / "empty", output=tmp_path / "out", steps=1, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocab_size": 100}, "--vocab-size 100 is outside of 272"),
        ({"vocab_size": 10**7}, "--vocab-size 10000000 is outside of"),
        ({"tokenizer": "words"}, "--tokenizer words is neither bpe, byte, char nor a folder"),
        ({"tokenizer": "."}, "tokenizer"),
        ({"context_length": 1}, "--context-length is 1, but must be at least 2"),
        ({"contex_length": 8}, "--contex-length is unknown"),
    ],
)
def test_the_impossible_is_refused_before_any_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OwnGPTError, match=words):
        train(source, output=tmp_path / "out", steps=1, **options)
    assert not (tmp_path / "out").exists()


def test_a_resolved_configuration_repeats_the_run(run: Path, tmp_path: Path) -> None:
    _, sources, settings = read_configuration(run / "run" / "run.yaml")
    assert settings["learning_rate"] > 0 and settings["heads"] == 1 and settings["steps"] == 6
    result = train(sources, output=tmp_path / "again", quiet=True, **settings)
    assert sha256_of_file(result.output / "model.safetensors") == sha256_of_file(run / "model.safetensors")


def test_a_named_checkpoint_is_gone_on_from(run: Path) -> None:
    (checkpoint,) = checkpoints(run / "run" / "checkpoints")
    before = sha256_of_file(run / "model.safetensors")
    (run / "model.safetensors").unlink()
    assert train(resume_from=checkpoint, quiet=True).output == run
    assert sha256_of_file(run / "model.safetensors") == before
    with pytest.raises(UsageError, match="is not a checkpoint of"):
        train(resume_from=checkpoint, output=run.parent / "other", quiet=True)


def test_a_named_damaged_checkpoint_is_an_error_and_an_unnamed_one_is_skipped(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = checkpoints(run / "run" / "checkpoints")
    with open(checkpoint / TENSORS, "r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match=f"{TENSORS} has 100 bytes instead of"):
        train(resume_from=checkpoint, quiet=True)
    train(output=run, resume=True, quiet=True)
    words = capsys.readouterr().err
    assert f"{checkpoint} is damaged: {TENSORS} has 100 bytes" in words
    assert "no whole checkpoint to go on from: the run begins again" in words
    assert damage(checkpoint) is None, "the run was taken again from its start"


def test_a_run_of_an_earlier_version_goes_on(run: Path) -> None:
    """Its plan lacks fields that later versions added with a default; its checkpoint was marked without them."""
    described = run / "run" / "run.yaml"
    record = yaml.safe_load(described.read_text("utf-8"))
    for part, name in (("model", "attention_dropout"), ("model", "rotary_fraction"), ("course", "floor")):
        del record["plan"][part][name]
    del record["plan"]["ranks"], record["vocab_size"], record["settings"]["mask_personal_data"]
    described.write_text(yaml.safe_dump(record), "utf-8")
    (checkpoint,) = checkpoints(run / "run" / "checkpoints")
    values = json.loads((checkpoint / VALUES).read_text("utf-8"))
    values["meta"]["identity"]["plan"] = hashlib.sha256(json.dumps(record["plan"], sort_keys=True).encode()).hexdigest()
    (checkpoint / VALUES).write_text(json.dumps(values), "utf-8")
    manifest = json.loads((checkpoint / MANIFEST).read_text("utf-8"))
    size = (checkpoint / VALUES).stat().st_size
    manifest["files"][VALUES] = {"size": size, "sha256": sha256_of_file(checkpoint / VALUES)}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    before = sha256_of_file(run / "model.safetensors")
    assert train(output=run, resume=True, quiet=True).training["step"] == 6
    assert sha256_of_file(run / "model.safetensors") == before


def test_a_run_with_another_plan_does_not_go_on(run: Path) -> None:
    described = run / "run" / "run.yaml"
    described.write_text(described.read_text("utf-8").replace("clip: 1.0", "clip: 0.5"), "utf-8")
    with pytest.raises(CheckpointError, match="another run: plan differ"):
        train(output=run, resume=True, quiet=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not hold sources, settings, plan"),
        (b"sources: [a]\nsettings: {steps", "not YAML"),
        (b"\xff\xfe\x00", "cannot be read|not YAML"),
        (b"sources: [a]\nsettings: {steps: 4}\nplan: {}\n", "damaged"),
        (b"sources: [a]\nsettings: {steps: many}\nplan: {}\n", "many"),
    ],
)
def test_a_damaged_description_is_one_sentence(run: Path, content: bytes, words: str) -> None:
    (run / "run" / "run.yaml").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        train(output=run, resume=True, quiet=True)
    assert "run.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_resuming_needs_a_folder_with_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name its folder with --output"):
        train(resume=True)
    with pytest.raises(UsageError, match="holds no run to resume"):
        train(resume=True, output=tmp_path)


def test_an_option_that_differs_from_the_run_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="--steps 7 is 6 in this run"):
        train(resume=True, output=run, steps=7)


def test_a_folder_in_use_is_left_alone(run: Path, source: Path) -> None:
    with RunLock(run / "run"), pytest.raises(FolderBusyError):
        train(output=run, resume=True, quiet=True)


def test_the_card_has_no_numbers_that_were_not_measured(run: Path) -> None:
    card = (run / "README.md").read_text("utf-8")
    assert "nan" not in card.lower().split() and "tokens_per_second" not in card
    assert "expected_bits_per_byte" in card
