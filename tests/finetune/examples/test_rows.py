"""Rows of files: every format, where each row is, and what is said of a row that cannot be read."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from owngpt.data.sources import ReadLog, list_files
from owngpt.errors import DataError
from owngpt.finetune.examples.fault import BrokenFile, Fault
from owngpt.finetune.examples.json_rows import ROW_CHARACTERS, json_rows
from owngpt.finetune.examples.rows import read_rows


def rows(path: Path, log: ReadLog | None = None) -> list[tuple[int, Any]]:
    [file] = list_files([path])
    return [(row.number, row.values) for row in read_rows(file, log or ReadLog())]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults(found: list[tuple[int, Any]]) -> list[tuple[int, str]]:
    return [(number, values.reason) for number, values in found if isinstance(values, Fault)]


def test_a_line_of_jsonl_is_a_row_and_blank_lines_count_as_lines(tmp_path: Path) -> None:
    found = rows(write(tmp_path / "a.jsonl", '{"a": 1}\r\n\r\n{"a": "\u2028"}\n{"a": NaN}'))
    assert found == [(1, {"a": 1}), (3, {"a": "\u2028"}), (4, {"a": None})]


def test_broken_json_on_line_4711_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": str(n), "completion": "x"}) for n in range(1, 5001)]
    lines[4710] = '{"prompt": "4711" "completion": "x"}'
    found = rows(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert len(found) == 5000
    assert faults(found) == [(4711, "not valid JSON (Expecting ',' delimiter at column 19)")]
    assert found[4711] == (4712, {"prompt": "4712", "completion": "x"})


def test_a_list_in_a_json_file_is_read_element_by_element(tmp_path: Path) -> None:
    values = [{"text": 'a,]}[{\\"' * 3, "n": n} for n in range(500)]
    assert rows(write(tmp_path / "a.json", json.dumps(values, indent=2))) == list(enumerate(values, 1))
    assert rows(write(tmp_path / "b.json", "[]")) == []
    assert rows(write(tmp_path / "c.json", "")) == []


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_a_json_list_is_the_same_however_the_text_is_cut(block: int) -> None:
    values = [{"a": 'x"\\', "b": [1, {"c": None}]}, {"a": "中文 🎉"}, 12, -3.5e10, "text", True, None, []]
    text = " \n" + json.dumps(values, ensure_ascii=False, indent=1) + "\n "
    cut = (text[start : start + block] for start in range(0, len(text), block))
    assert list(json_rows(cut, by_line=False)) == list(enumerate(values, 1))


def test_a_broken_json_list_gives_the_rows_before_the_break_and_says_where_it_is(tmp_path: Path) -> None:
    found = rows(write(tmp_path / "a.json", '[\n{"a": 1},\n{"a": 2},\n{"a" 3},\n{"a": 4}]'))
    assert found[:2] == [(1, {"a": 1}), (2, {"a": 2})]
    [(number, fault)] = found[2:]
    assert number == 3 and fault.reason == "not valid JSON (Expecting ':' delimiter at line 4, column 6)"
    assert fault.fix == "mend the file; nothing after row 2 can be read"
    for text, reason, read in (
        ('[{"a": 1} {"a": 2}]', "a comma is missing (text line 1)", 1),
        ('[{"a": 1},\n{"a": 2}', "the list is not closed (text line 2)", 2),
        ('[{"a": 1}]\nand more', "there is text behind the list (text line 2)", 1),
    ):
        *whole, (_, fault) = rows(write(tmp_path / "b.json", text))
        assert (fault.reason, fault.fix) == (reason, f"mend the file; nothing after row {read} can be read")
        assert len(whole) == read


def test_names_that_mislead_are_looked_through(tmp_path: Path) -> None:
    lines = '{"a": 1}\n{"a": 2}\n'
    assert rows(write(tmp_path / "lines.json", lines)) == [(1, {"a": 1}), (2, {"a": 2})]
    assert rows(write(tmp_path / "list.jsonl", '[\n{"a": 1},\n{"a": 2}]')) == [(1, {"a": 1}), (2, {"a": 2})]
    assert rows(write(tmp_path / "short.jsonl", '[{"a": 1}, {"a": 2}]')) == [(1, {"a": 1}), (2, {"a": 2})]
    broken = rows(write(tmp_path / "broken.json", '{"a" 1}\n{"a": 2}\n'))
    assert faults(broken) == [(1, "not valid JSON (Expecting ':' delimiter at column 6)")] and broken[1] == (2, {"a": 2})


def test_the_rows_of_an_object_are_its_longest_list_of_objects(tmp_path: Path) -> None:
    value = {"version": 1, "tags": [{"x": 1}], "data": [{"a": 1}, {"a": 2}]}
    assert rows(write(tmp_path / "a.json", json.dumps(value, indent=1))) == [(1, {"a": 1}), (2, {"a": 2})]
    one = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    assert rows(write(tmp_path / "b.json", json.dumps(one, indent=1))) == [(1, one)]


def test_csv_rows_know_their_first_line_whatever_the_delimiter(tmp_path: Path) -> None:
    comma = write(tmp_path / "a.csv", 'question,answer\n"How,\nthen?",So\n\n"He said ""no""",x\n')
    assert rows(comma) == [
        (2, {"question": "How,\nthen?", "answer": "So"}),
        (5, {"question": 'He said "no"', "answer": "x"}),
    ]
    assert rows(write(tmp_path / "b.csv", '\ufeffFrage;"a,b";\nx;y;0\n')) == [(2, {"Frage": "x", "a,b": "y"})]
    assert rows(write(tmp_path / "c.tsv", "q\ta\nx, y\tz\n")) == [(2, {"q": "x, y", "a": "z"})]


def test_csv_faults_name_the_line_and_the_fix(tmp_path: Path) -> None:
    found = rows(write(tmp_path / "a.csv", 'q,a\n1,2\n1,2,3\n"x"y,2\n5,6\n7\n"open,9\n10,11\n'))
    assert faults(found) == [
        (3, "3 cells, but the header names 2 columns"),
        (4, "not valid csv (',' expected after '\"')"),
        (7, "a quote is opened and not closed (2 lines on)"),
    ]
    assert found[0] == (2, {"q": "1", "a": "2"}) and (6, {"q": "7", "a": None}) in found
    assert faults(rows(write(tmp_path / "b.csv", "q,q\n1,2\n")))[0][1] == "the header names the column 'q' twice"


def test_parquet_rows_are_numbered_and_raw_bytes_left_aside(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]] * 300
    table = pyarrow.table({"messages": messages, "image": [b"\x00"] * 300})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = rows(tmp_path / "a.parquet")
    assert found[299] == (300, {"messages": messages[0]}) and len(found) == 300
    broken = rows(write(tmp_path / "b.parquet", b"PAR1 nothing"))
    assert isinstance(broken[0][1], BrokenFile) and "not valid parquet" in broken[0][1].reason


def test_chinese_encodings_and_compression_are_looked_through(tmp_path: Path) -> None:
    line = '{"question": "怎么退货？", "answer": "七天内都可以无理由退货。"}\n'
    expected = [(1, json.loads(line))]
    assert rows(write(tmp_path / "bom.jsonl", "\ufeff" + line)) == expected
    log = ReadLog()
    assert rows(write(tmp_path / "gb.jsonl", line.encode("gb18030")), log) == expected and "gb18030" in log.encodings
    assert rows(write(tmp_path / "wide.jsonl", line.encode("utf-16"))) == expected
    assert rows(write(tmp_path / "a.jsonl.gz", gzip.compress(line.encode()))) == expected
    cut = rows(write(tmp_path / "cut.jsonl.gz", gzip.compress((line * 9000).encode())[:-400]))
    assert cut[-1][1].reason == "the gzip file is damaged"


def test_binary_files_and_long_rows_are_refused_without_being_held(tmp_path: Path) -> None:
    assert faults(rows(write(tmp_path / "a.jsonl", bytes(range(256)) * 9))) == [(1, "the file is binary, not text")]
    long = '{"text": "' + "x" * (5 * ROW_CHARACTERS) + '"}'
    for name, text in (("b.jsonl", f'{long}\n{{"text": "short"}}\n'), ("c.json", f'[{long},\n{{"text": "short"}}]')):
        path = write(tmp_path / name, text)
        tracemalloc.start()
        found = rows(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found[0][1].reason.startswith(("the row is longer than 4,194,304", "not valid JSON"))
        assert peak < 4 * len(long) / 5 * 6
    assert found[-1][0] == 1  # a list cannot be followed behind what was not read
    assert rows(tmp_path / "b.jsonl")[1] == (2, {"text": "short"})


def test_rows_are_never_held_at_once(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "p" * 6000, "completion": "c"})
    for name, text in (("a.jsonl", (row + "\n") * 4000), ("b.json", "[" + ",".join([row] * 4000) + "]")):
        [file] = list_files([write(tmp_path / name, text)])
        tracemalloc.start()
        count = sum(1 for _ in read_rows(file, ReadLog()))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 4000 and peak < len(text) / 2


def test_nested_too_deeply_is_a_fault_of_the_row(tmp_path: Path) -> None:
    deep = "[" * 200_000 + "]" * 200_000
    found = rows(write(tmp_path / "a.jsonl", '{"a": 1}\n' + deep + '\n{"a": 2}\n'))
    assert [number for number, _ in found] == [1, 2, 3] and "nested too deeply" in found[1][1].reason


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n')
    [file] = list_files([path])
    write(path, '{"a": 1}\n{"a": 2}\n')
    with pytest.raises(DataError, match="a.jsonl was changed while it was being read"):
        list(read_rows(file, ReadLog()))


def test_a_plain_text_is_one_row(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.txt", "One.\n\nTwo.\n")) == [(1, {"text": "One.\n\nTwo.\n"})]
