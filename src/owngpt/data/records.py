"""Rows of jsonl, json, csv and parquet files as texts.

The text of a row is its `text` (or `content`, …) field; else a conversation or a prompt with its answer, joined by blank
lines without role marks, since pre-training wants the words and fine-tuning the roles.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from owngpt.data.sources import ReadLog

TEXT_FIELDS = ("text", "content", "document", "body", "code", "article", "story", "passage", "markdown", "paragraphs")
_CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue")
_ASKED = ("system", "instruction", "prompt", "question", "query", "input", "context")
_ANSWERED = ("completion", "response", "output", "answer", "chosen")
_RECORD_CHARACTERS = 64 * 2**20
_PROBED_ROWS = 100


class DamagedFileError(Exception):
    """A file is not what its ending says; the message is the reason it is passed over for."""


def record_text(record: object) -> str | None:
    """The text of one row: a string itself, or the fields of an object that hold text; none if there are none."""
    if isinstance(record, str):
        return record
    if isinstance(record, list):
        parts = [text for item in record if (text := record_text(item))]
        return "\n\n".join(parts) or None
    if not isinstance(record, Mapping):
        return None
    fields = {str(name).lower(): value for name, value in record.items()}
    for name in (*TEXT_FIELDS, *_CONVERSATIONS):
        if (text := _field_text(fields.get(name))) is not None:
            return text
    answers = [text for name in _ANSWERED if (text := _field_text(fields.get(name)))]
    if not answers:
        return _field_text(fields.get("value"))  # a ShareGPT message
    asked = [text for name in _ASKED if (text := _field_text(fields.get(name)))]
    return "\n\n".join([*asked, answers[0]])


def _field_text(value: object) -> str | None:
    if isinstance(value, str):
        return value if value.strip() else None
    return record_text(value) if isinstance(value, list | Mapping) else None


def jsonl(blocks: Iterator[str], name: str, log: ReadLog) -> Iterator[str]:
    """Texts of a file of JSON objects, one a line. Lines that are not JSON or hold no text are counted and passed over."""
    for number, line in enumerate(_lines(blocks, name, log), 1):
        if not line.strip():
            continue
        try:
            text = record_text(json.loads(line))
        except (ValueError, RecursionError):
            log.skip("line is not JSON", f"{name}:{number}")
            continue
        if text is None:
            log.skip("record without text", f"{name}:{number}")
        else:
            yield text


def json_file(blocks: Iterator[str], name: str, log: ReadLog) -> Iterator[str]:
    """Texts of a JSON file: one a row of a list, or of the longest list of an object. Files over 64 MB are passed over."""
    parts, size = [], 0
    for block in blocks:
        parts.append(block)
        size += len(block)
        if size > _RECORD_CHARACTERS:
            raise DamagedFileError("JSON file over 64 MB (convert it to .jsonl)")
    text = "".join(parts)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if text.lstrip()[:1] != "{" or "\n" not in text:
            raise DamagedFileError("not valid JSON") from None
        yield from jsonl(iter([text]), name, log)  # JSON lines under a .json name are common
        return
    rows = value if isinstance(value, list) else [value]
    if isinstance(value, dict) and record_text(value) is None:
        rows = max((field for field in value.values() if isinstance(field, list)), key=len, default=[])
    for number, row in enumerate(rows, 1):
        if (row_text := record_text(row)) is None:
            log.skip("record without text", f"{name}[{number}]")
        else:
            yield row_text


def csv_file(blocks: Iterator[str], name: str, log: ReadLog) -> Iterator[str]:
    """Texts of a csv or tsv file with a header line."""
    csv.field_size_limit(_RECORD_CHARACTERS)
    delimiter = "\t" if ".tsv" in name.lower() else ","
    rows = csv.DictReader(_lines(blocks, name, log, keep_ends=True), delimiter=delimiter)
    try:
        probed = [row for _, row in zip(range(_PROBED_ROWS), rows, strict=False)]
        pick = _column_picker(probed, list(rows.fieldnames or []), name, log)
        for row in _chain(probed, rows):
            text = pick(row)
            if text is None or not text.strip():
                log.skip("record without text", f"{name}:{rows.line_num}")
            else:
                yield text
    except csv.Error as error:
        raise DamagedFileError(f"not valid csv ({error})") from None


def parquet(file: BinaryIO, name: str, log: ReadLog) -> Iterator[str]:
    """Texts of a parquet file, a few hundred rows at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = [column for column in table.schema_arrow.names if _may_hold_text(table.schema_arrow.field(column).type)]
        if not columns:
            raise DamagedFileError("parquet file without a text column")
        probe = next(table.iter_batches(batch_size=_PROBED_ROWS, columns=columns), None)
        probed = probe.to_pylist() if probe is not None else []
        pick = _column_picker(probed, columns, name, log)
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                text = pick(row)
                if text is None or not text.strip():
                    log.skip("record without text", name)
                else:
                    yield text
    except pyarrow.ArrowException as error:
        raise DamagedFileError(f"not valid parquet ({str(error).splitlines()[0][:80]})") from None


READERS: dict[str, Callable[[Iterator[str], str, Any], Iterator[str]]] = {"jsonl": jsonl, "json": json_file, "csv": csv_file}


def _may_hold_text(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_struct(kind)
    )


def _column_picker(rows: list[Any], columns: list[str], name: str, log: ReadLog) -> Callable[[Any], str | None]:
    """How to take the text out of a row: by the usual field names, else the column with the most text, which is noted."""
    if any(record_text(row) is not None for row in rows) or not rows:
        return record_text
    sizes = {column: sum(len(row[column]) for row in rows if isinstance(row.get(column), str)) for column in columns}
    best = max(sizes, key=lambda column: sizes[column], default=None)
    if best is None or sizes[best] == 0:
        return record_text
    log.note(f"{name}: took the column {best!r} as the text; name the column 'text' to choose another")
    return lambda row: row.get(best)


def _lines(blocks: Iterator[str], name: str, log: ReadLog, *, keep_ends: bool = False) -> Iterator[str]:
    """The lines of a file; a line over 64 million characters is counted and passed over without holding it."""
    rest: list[str] = []
    size = 0
    for block in blocks:
        lines = block.split("\n")
        for line in lines[:-1]:
            if size <= _RECORD_CHARACTERS:
                whole = "".join([*rest, line])
                yield whole + "\n" if keep_ends else whole
            else:
                log.skip("record over 64 MB", name)
            rest, size = [], 0
        size += len(lines[-1])
        if size > _RECORD_CHARACTERS:
            rest = []
        elif lines[-1]:
            rest.append(lines[-1])
    if size > _RECORD_CHARACTERS:
        log.skip("record over 64 MB", name)
    elif rest:
        yield "".join(rest)


def _chain(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    yield from first
    yield from rest
