"""The whole way from files to tokens, and its report."""

from __future__ import annotations

from pathlib import Path

import pytest
from texts import english

from owngpt.data.prepare import find_report, prepare
from owngpt.data.progress import DIVIDING, LEARNING, READING, TOKENIZING
from owngpt.errors import DataError, UsageError
from owngpt.text.tokenizer import Tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "book.txt").write_text(english(200_000, 4))
    return tmp_path / "book.txt"


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_every_kind_of_tokenizer_gives_tokens_of_the_text(source: Path, tmp_path: Path, kind: str) -> None:
    data = prepare([source], tmp_path / "out", tokenizer=kind, vocab_size=600)
    tokenizer = Tokenizer.load(tmp_path / "out" / "tokenizer")
    assert tokenizer.decode(data.validation.slice(0, 200).tolist())[:50] in source.read_text()
    assert data.train.byte_count + data.validation.byte_count == source.stat().st_size


def test_what_still_fits_is_used_again_and_progress_is_told(source: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    prepare([source], tmp_path / "out", vocab_size=600, progress=lambda stage, *_: stages.append(stage))
    assert list(dict.fromkeys(stages)) == [READING, DIVIDING, LEARNING, TOKENIZING]
    stages.clear()
    prepare([source], tmp_path / "out", vocab_size=600, progress=lambda stage, *_: stages.append(stage))
    assert stages == []
    prepare([source], tmp_path / "out", vocab_size=300, progress=lambda stage, *_: stages.append(stage))
    assert list(dict.fromkeys(stages)) == [LEARNING, TOKENIZING]


def test_a_tokenizer_that_exists_is_taken_as_it_is(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "one", vocab_size=600)
    data = prepare([source], tmp_path / "two", tokenizer=tmp_path / "one" / "tokenizer")
    assert data.manifest["tokenizer"] == Tokenizer.load(tmp_path / "one" / "tokenizer").fingerprint


def test_an_unknown_tokenizer_is_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokenizer 'wordpiece' is neither one of bpe, byte, char nor a folder"):
        prepare([source], tmp_path / "out", tokenizer="wordpiece")
    assert not (tmp_path / "out").exists()


def test_the_report_is_found_from_the_output_folder(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "out", vocab_size=600)
    assert find_report(tmp_path / "out").documents == 1
    with pytest.raises(DataError, match="holds no prepared data; make some with"):
        find_report(tmp_path)
