"""Rows of a person's files, one after another in bounded memory: jsonl, json, csv, parquet, arrow, and a plain text as one row.

A row that cannot be read is handed on as such, with its place, and the rest goes on. However long a file is, no more
than one block of it and one row are held.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, cast

from owngpt.data import encoding, sources
from owngpt.data.sources import ReadLog, SourceFile
from owngpt.errors import DataError
from owngpt.finetune.examples.fault import BrokenFile, Fault
from owngpt.finetune.examples.json_rows import ROW_CHARACTERS, TOO_LONG, json_rows, lines_of

_ROW_FORMATS = ("jsonl", "json", "csv", "parquet")
_BATCH_ROWS = 128
_DELIMITERS = (",", "\t", ";", "|")


@dataclass(frozen=True, slots=True)
class Row:
    """What one row holds, or why it cannot be read."""

    number: int
    """From 1: the line on which it begins in jsonl and csv files, else the row."""
    values: Any
    """Plain values; a :class:`Fault` where the row cannot be read."""


def holds_rows(file: SourceFile) -> bool:
    """Whether `file` is of a format whose rows are examples (a plain text is not)."""
    return file.kind in _ROW_FORMATS or _is_arrow(file)


def place_word(name: str) -> str:
    """What a number in the file `name` counts: its lines or its rows."""
    ending = name.lower().removesuffix(".gz").rpartition(".")[2]
    return "line" if ending in ("jsonl", "ndjson", "csv", "tsv") else "row"


def read_rows(file: SourceFile, log: ReadLog) -> Iterator[Row]:
    """The rows of `file` in order; `log` learns which encodings were met.

    Raises:
        DataError: the file changed since it was listed, so that what was found out about its rows no longer holds.
    """
    _check_unchanged(file)
    number = 0
    try:
        for row in _rows(file, log):
            number = row.number
            yield row
    except (gzip.BadGzipFile, zlib.error, EOFError):
        yield Row(number + 1, BrokenFile("the gzip file is damaged", "compress it again"))
    except OSError as error:
        yield Row(number + 1, BrokenFile(f"the file cannot be read ({error.strerror or error})", "check its permissions"))
    except Fault as fault:
        yield Row(number + 1, fault)


def _check_unchanged(file: SourceFile) -> None:
    try:
        status = file.path.stat()
    except OSError as error:
        raise DataError(f"{file.name} cannot be read any more ({error.strerror}); leave it in place and start again") from error
    if (status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)) != (file.size, file.modified_ns):
        raise DataError(f"{file.name} was changed while it was being read; leave it as it is and start again")


def _rows(file: SourceFile, log: ReadLog) -> Iterator[Row]:
    if file.kind == "text" and not _is_arrow(file):
        yield from _whole_texts(file, log)
        return
    with open(file.path, "rb", buffering=2**18) as raw:
        if file.kind in ("parquet", "text"):
            yield from _table(raw, "parquet" if file.kind == "parquet" else "arrow")
            return
        zipped = file.path.suffix.lower() == ".gz"
        stream = cast("io.BufferedReader", gzip.GzipFile(fileobj=raw) if zipped else raw)
        blocks = _decoded(stream, log)
        numbered = _csv(blocks) if file.kind == "csv" else json_rows(blocks, by_line=file.kind == "jsonl")
        yield from (Row(number, values) for number, values in numbered)


def _decoded(stream: io.BufferedReader, log: ReadLog) -> Iterator[str]:
    head = stream.peek(encoding.SNIFFED_BYTES)[: encoding.SNIFFED_BYTES]
    guess = encoding.sniff(head)
    if guess is None:
        raise BrokenFile("the file is binary, not text", "give it as .jsonl, .json, .csv or .parquet")
    stream.read(guess[1])
    return encoding.decode_blocks(stream, guess[0], log.encodings)


def _whole_texts(file: SourceFile, log: ReadLog) -> Iterator[Row]:
    """A plain text is one row; one of over a million characters comes in several."""
    for number, document in enumerate(sources.documents([file], log), 1):
        yield Row(number, {"text": document.text})
    if log.skipped:
        reason = next(iter(log.skipped))
        log.skipped.clear()
        raise BrokenFile(f"the file is passed over: {reason}", sources.remedy(reason))


def _csv(blocks: Iterator[str]) -> Iterator[tuple[int, Any]]:
    """Number of the first line and the cells by column name of each row; cells that are not there are None."""
    csv.field_size_limit(ROW_CHARACTERS)
    lines = _with_ends(blocks)
    header = next(lines, "")
    # strict: a quote that is not closed must be said, or it swallows the rest of the file as one cell
    reader = csv.reader(chain([header], lines), delimiter=_delimiter(header), strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise BrokenFile(f"the header is not valid csv ({error})", "mend the first line") from None
    named = [name for name in columns if name]
    if repeated := {name for name in named if named.count(name) > 1}:
        raise BrokenFile(f"the header names the column {min(repeated)!r} twice", "rename one of them")
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield begin, _csv_fault(error, reader.line_num - begin + 1)
            continue
        if cells is None:
            return
        if cells:
            yield begin, _by_column(columns, cells)


def _by_column(columns: list[str], cells: list[str]) -> Any:
    if len(cells) > len(columns):
        reason = f"{len(cells)} cells, but the header names {len(columns)} columns"
        return Fault(reason, 'put "quotes" around a cell that holds a delimiter')
    padded = chain(cells, [None] * (len(columns) - len(cells)))
    return {name: cell for name, cell in zip(columns, padded, strict=True) if name}


def _csv_fault(error: csv.Error, lines: int) -> Fault:
    if "unexpected end of data" in str(error) or "field larger" in str(error):
        return Fault(f"a quote is opened and not closed ({lines:,} lines on)", "close the quote")
    return Fault(f"not valid csv ({error})", "double a quote inside of a quoted cell")


def _delimiter(header: str) -> str:
    """The delimiter that the header has most of, outside of quotes."""
    outside = "".join(header.split('"')[0::2])
    return max(_DELIMITERS, key=outside.count)


def _with_ends(blocks: Iterator[str]) -> Iterator[str]:
    for _, line in lines_of(blocks):
        if line is None:
            raise BrokenFile(*TOO_LONG)
        yield line + "\n"


def _is_arrow(file: SourceFile) -> bool:
    return file.path.suffix.lower() == ".arrow"


def _table(file: BinaryIO, kind: str) -> Iterator[Row]:
    """Rows a batch at a time, without columns of raw bytes."""
    import pyarrow

    try:
        number = 0
        for batch in _batches(file, kind):
            for values in batch.to_pylist():
                number += 1
                yield Row(number, values)
    except (pyarrow.ArrowException, OverflowError, ValueError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise BrokenFile(f"not valid {kind} ({reason})", "write the file again") from None


def _batches(file: BinaryIO, kind: str) -> Iterator[Any]:
    """Batches of a parquet file, or of an Arrow stream or file, which is how the library `datasets` saves a set."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    if kind == "parquet":
        table = pyarrow.parquet.ParquetFile(file)
        kept = [field.name for field in table.schema_arrow if not _is_bytes(field.type)]
        yield from table.iter_batches(batch_size=_BATCH_ROWS, columns=kept)
        return
    if file.read(6) == b"ARROW1":
        opened = pyarrow.ipc.open_file(file)
        batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
    else:
        file.seek(0)
        batches = iter(pyarrow.ipc.open_stream(file))
    for batch in batches:
        kept = [field.name for field in batch.schema if not _is_bytes(field.type)]
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.select(kept).slice(start, _BATCH_ROWS)


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))
