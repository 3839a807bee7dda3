"""Files are scored as the text that they hold, whatever their encoding or format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.engine import poem

from owngpt.errors import DataError
from owngpt.evaluate.bits import score_text
from owngpt.evaluate.files import score_files

TEXT = "床前明月光，疑是地上霜。举头望明月，低头思故乡。\n" * 4


def score(*paths: Path) -> object:
    return score_files(poem.model(), poem.tokenizer(), paths)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_the_encoding_of_a_file_does_not_change_its_score(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "poem.txt"
    path.write_bytes(TEXT.encode(encoding))
    assert score(path) == score_text(poem.model(), poem.tokenizer(), [TEXT])


def test_text_is_not_repaired(tmp_path: Path) -> None:
    text = "naÃ¯ve  text ﬁne\t\u200b end "
    path = tmp_path / "raw.txt"
    path.write_bytes(text.encode())
    assert score(path) == score_text(poem.model(), poem.tokenizer(), [text])


def test_every_record_and_every_file_of_a_folder_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("two", "three")), encoding="utf-8")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    result = score(tmp_path)
    assert (result.documents, result.bytes) == (3, 11)
    assert result == score_text(poem.model(), poem.tokenizer(), ["one", "two", "three"])


@pytest.mark.parametrize(
    ("name", "content"),
    [("missing.txt", None), ("empty.txt", b""), ("image.png", b"\x89PNG\x00"), ("noise.txt", b"\x00\x01\x02" * 99)],
)
def test_a_file_without_text_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / name
    good.write_text("text", encoding="utf-8")
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(DataError, match=name):
        score(good, bad)


def test_naming_no_file_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        score()
