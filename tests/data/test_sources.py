"""Reading: what becomes a document, in which encoding, and what is named and passed over."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from texts import english

from owngpt.data.sources import PART_CHARACTERS, Document, ReadLog, documents, list_files
from owngpt.errors import DataError

CHINESE = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。\n" * 20


def read(*paths: Path, log: ReadLog | None = None) -> list[str]:
    return [document.text for document in documents(paths, log)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le", "utf-16-be"])
def test_every_encoding_gives_the_same_text(tmp_path: Path, encoding: str) -> None:
    text = "A plain English line.\n" * 40 + CHINESE
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read(tmp_path) == [text]


def test_western_text_of_windows_is_read(tmp_path: Path) -> None:
    text = "Le café était déjà fermé, ‘naturellement’ – où aller ?\n" * 30
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252"))
    assert read(tmp_path) == [text]


def test_a_file_that_mixes_encodings_is_read_line_by_line(tmp_path: Path) -> None:
    chinese = "分久必合，合久必分\n"
    (tmp_path / "a.txt").write_bytes((chinese * 3).encode("utf-8") + (chinese * 3).encode("gb18030") + b"end\n")
    log = ReadLog()
    assert read(tmp_path, log=log) == [chinese * 6 + "end\n"]
    assert set(log.encodings) == {"utf-8", "gb18030"}


def test_records_of_every_format_give_their_text(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"content": "two"}, {"prompt": "ask", "completion": "answer"}]
    rows += [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    rows += [{"instruction": "do", "input": "this", "output": "done"}, {"conversations": [{"from": "human", "value": "q"}]}]
    expected = ["one", "two", "ask\n\nanswer", "Hi\n\nHello", "do\n\nthis\n\ndone", "q"]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "b.json") == read(tmp_path / "c.jsonl.gz") == expected


def test_csv_and_parquet_rows_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"two\nlines"\n2,plain\n3,\n')
    (tmp_path / "b.tsv").write_text("id\ttext\n1\tone\n")
    table = pyarrow.table({"id": [1, 2], "text": ["first", "second"]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    log = ReadLog()
    assert read(tmp_path, log=log) == ["two\nlines", "plain", "one", "first", "second"]
    assert log.skipped == {"record without text": 1}


def test_without_a_text_column_the_longest_one_is_taken_and_noted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,review\n1,a long and winding review\n2,another one\n")
    log = ReadLog()
    assert read(tmp_path, log=log) == ["a long and winding review", "another one"]
    assert "'review'" in log.notes[0]


def test_broken_records_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{broken\n{"number": 1}\n')
    log = ReadLog()
    assert read(tmp_path, log=log) == ["good"]
    assert log.skipped == {"line is not JSON": 1, "record without text": 1}
    assert log.samples["line is not JSON"] == [f"{tmp_path / 'a.jsonl'}:2"]


def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"x" * 10_000)[:40])
    (tmp_path / "c.txt").write_text("good")
    log = ReadLog()
    assert read(tmp_path, log=log)[-1] == "good"
    assert sum(log.skipped.values()) == 2


def test_binary_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    (tmp_path / "data").write_bytes(os.urandom(5000))
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "LICENSE").write_text("a text without an ending")
    log = ReadLog()
    assert read(tmp_path, log=log) == ["a text without an ending"]
    assert log.skipped == {"not a text file": 1, "binary, not text": 1}


def test_a_file_that_vanishes_between_listing_and_reading_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("stays")
    (tmp_path / "b.txt").write_text("goes")
    log = ReadLog()
    files = list_files([tmp_path], log)
    (tmp_path / "b.txt").unlink()
    assert [document.text for document in documents(files, log)] == ["stays"]
    assert log.samples == {"vanished": [str(tmp_path / "b.txt")]}


def test_what_may_not_be_read_says_to_check_the_permissions(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o000)
    (tmp_path / "secret.txt").write_text(english(1000, 1))
    (tmp_path / "secret.txt").chmod(0o000)
    code = "import sys; from owngpt.data.corpus import collect; collect([sys.argv[1]], sys.argv[2])"
    for source, reason in (
        ("locked", "folder cannot be read: .*locked"),
        ("secret.txt", r"cannot be read \(Permission denied\)"),
    ):
        # A superuser may read everything, unless it gives that right up.
        give_up = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []
        if give_up and shutil.which("setpriv") is None:
            pytest.skip("a superuser may read everything")
        command = [*give_up, sys.executable, "-c", code, str(tmp_path / source), str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert re.search(f"DataError: .*{reason}.*; check the permissions", done.stderr), done.stderr


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("once")
    assert read(tmp_path, tmp_path / "a.txt") == ["once"]


def test_missing_empty_and_binary_sources_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        list_files([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="holds no files; put text"):
        list_files([tmp_path])
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"holds no text: 1 passed over \(not a text file: .*give text as"):
        list_files([tmp_path])


def test_a_document_over_a_megabyte_comes_in_parts_that_join_to_it(tmp_path: Path) -> None:
    text = "".join(f"Paragraph {number} of a long book.\n\n" for number in range(100_000))
    (tmp_path / "a.txt").write_text(text)
    parts = list(documents([tmp_path]))
    assert "".join(part.text for part in parts) == text
    assert len(parts) > 1 and all(len(part.text) <= PART_CHARACTERS for part in parts)
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(part.text.endswith("\n\n") for part in parts)


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_one_enormous_line_is_read_in_bounded_memory(tmp_path: Path, encoding: str) -> None:
    block = "分久必合abc，" * 100_000
    with open(tmp_path / "a.txt", "wb") as file:
        for _ in range(40 if encoding == "utf-8" else 4):
            file.write(block.encode(encoding))
    tracemalloc.start()
    count = sum(len(part.text) for part in documents([tmp_path]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == len(block) * (40 if encoding == "utf-8" else 4)
    assert peak < 40 * 2**20


def test_hash_of_every_source_is_kept(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "a.txt").write_bytes(b"some text\n")
    log = ReadLog()
    assert list(documents([tmp_path], log)) == [Document("some text\n", str(tmp_path / "a.txt"), 0)]
    assert log.hashes == {str(tmp_path / "a.txt"): hashlib.sha256(b"some text\n").hexdigest()}
