"""What a trainer wrote never becomes training text, wherever it lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from texts import english

from owngpt.data.corpus import Corpus, collect
from owngpt.data.prepare import prepare
from owngpt.data.sources import ReadLog, list_files
from owngpt.errors import DataError


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.txt").write_text(english(20_000, seed))
    return folder


def listed(folder: Path, log: ReadLog | None = None) -> list[str]:
    return [file.path.relative_to(folder).as_posix() for file in list_files([folder], log)]


def write(folder: Path, **contents: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_training_into_a_subfolder_of_the_source_leaves_the_corpus_as_it_was(books: Path, tmp_path: Path) -> None:
    from owngpt.pretraining import train

    before = collect([books], tmp_path / "before")
    small = {"hidden_size": 32, "layers": 1, "heads": 2, "context_length": 32, "batch_size": 2, "vocab_size": 300}
    train(books, output=books / "runs" / "first", steps=2, quiet=True, **small)
    first = Corpus.load(books / "runs" / "first" / "run" / "data" / "text")
    prepare([books], books / "prepared", vocab_size=300)
    after = collect([books], tmp_path / "after")
    for corpus in (first, after):
        assert (corpus.fingerprint, corpus.text_sha256) == (before.fingerprint, before.text_sha256)
    assert after.report.skipped == {"prepared data of OwnGPT": 1, "run of OwnGPT": 1}
    assert after.report.skipped_samples["run of OwnGPT"] == [str(books / "runs" / "first")]
    assert any("run of OwnGPT" in line for line in after.report.lines())


def test_a_run_and_prepared_data_that_were_broken_off_are_known_too(books: Path) -> None:
    write(books / "out" / "run", lock="1234")
    write(books / "out" / "run" / "data" / "text", text__utf8="half of it")
    write(books / "prepared" / "corpus", text__utf8="half of it")
    log = ReadLog()
    assert listed(books, log) == [f"{seed}.txt" for seed in range(6)]
    assert sum(log.skipped.values()) == 2


def test_models_of_others_and_tokenizers_are_not_text(books: Path) -> None:
    write(books / "model", config__json='{"model_type": "llama"}', model__safetensors="", README__md="# a card")
    write(books / "ollama", Modelfile="FROM ./model.gguf")
    (books / "ollama" / "model.gguf").write_bytes(b"GGUF")
    write(books / "tokenizer", tokenizer__json="{}", tokenizer_config__json="{}", notes__txt="a note of mine")
    log = ReadLog()
    assert listed(books, log) == [*(f"{seed}.txt" for seed in range(6)), "tokenizer/notes.txt"]
    assert log.skipped == {"model folder": 2, "file of a tokenizer": 2}


def test_files_of_a_person_with_such_names_are_read(books: Path) -> None:
    write(books / "app", config__json='{"debug": true}', manifest__json='{"name": "an app"}', data__bin="")
    write(books / "papers", corpus__json=json.dumps([english(300, 9)]), prepared__json='["text"]', tokenizer__json="{}")
    write(books / "jobs" / "run", run__yaml="steps: 3", lock="no folder named data beside it")
    names = set(listed(books))
    assert {
        "app/config.json",
        "app/manifest.json",
        "papers/corpus.json",
        "papers/prepared.json",
        "papers/tokenizer.json",
    } <= names
    assert {"jobs/run/run.yaml", "jobs/run/lock"} <= names


def test_the_output_of_the_present_run_is_never_read(books: Path, tmp_path: Path) -> None:
    write(books / "out", notes__txt=english(5000, 77))
    with_it, without = collect([books], tmp_path / "a"), collect([books], tmp_path / "b", leave_out=[books / "out"])
    assert with_it.report.documents == without.report.documents + 1
    assert without.report.skipped == {"output folder of this run": 1}


def test_a_source_that_is_itself_an_output_says_so(books: Path) -> None:
    prepare([books], books / "prepared", vocab_size=300)
    with pytest.raises(DataError, match=r"holds no text: 1 passed over \(prepared data of OwnGPT: .*prepared\)"):
        list_files([books / "prepared"])
