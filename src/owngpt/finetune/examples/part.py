"""One file of a set: where its rows are, how they are laid out, and what comes of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from owngpt.data.sources import ReadLog, SourceFile
from owngpt.finetune.examples.columns import Columns
from owngpt.finetune.examples.detect import PROBED_ROWS, Detected, check_layout, detect, fitting
from owngpt.finetune.examples.example import Example, Kind, Origin
from owngpt.finetune.examples.fault import BrokenFile, Fault
from owngpt.finetune.examples.layouts import Layout
from owngpt.finetune.examples.messages import USUAL_TAGS, Tags
from owngpt.finetune.examples.rows import Row, place_word, read_rows


@dataclass(frozen=True)
class Refusal:
    """A row that is not learned from."""

    origin: Origin
    reason: str
    fix: str
    is_last: bool = False
    """Nothing after it in its file can be read."""

    @property
    def place(self) -> str:
        """ "line 88" or "row 12"."""
        return f"{place_word(self.origin.file)} {self.origin.line:,}"


@dataclass(frozen=True)
class Part:
    """One file, and what is known about it."""

    file: SourceFile
    layout: Layout | None = None
    """None: not found out yet."""
    columns: Columns = field(default_factory=Columns)
    tags: Tags = USUAL_TAGS
    limit: int | None = None
    """Rows to take from the beginning."""
    unused: tuple[str, ...] = ()
    """Columns that are not read."""

    def found_out(self, wanted: Kind | None) -> Part:
        """This part with its layout, looked for in the first rows, or checked against them where it was named.

        Raises:
            UsageError: the rows do not tell, or do not have the columns that were named.
        """
        readable = (row for row in read_rows(self.file, ReadLog()) if not isinstance(row.values, Fault))
        rows = list(islice(readable, PROBED_ROWS))
        found: Detected | None
        if self.layout is None:
            found = detect(self.file.name, rows, self.columns, wanted)
        else:
            found = check_layout(self.file.name, self.layout, rows, self.columns)
        return self if found is None else replace(self, layout=found.layout, unused=found.unused)

    def outcomes(self, log: ReadLog) -> Iterator[Example | Refusal]:
        """What comes of each row, in order.

        Raises:
            DataError: the file changed since it was listed.
        """
        name, first = self.file.name, 0
        for row in islice(read_rows(self.file, log), self.limit):
            origin = Origin(name, row.number)
            try:
                example = self._example(row, origin, first)
                first = first or row.number
                yield example
            except Fault as fault:
                yield Refusal(origin, fault.reason, fault.fix, isinstance(fault, BrokenFile))

    def _example(self, row: Row, origin: Origin, first: int) -> Example:
        if isinstance(row.values, Fault):
            raise row.values
        fields = self.columns.fields(row.values)
        if self.layout is None:
            raise BrokenFile("no row before this one could be read", "mend the file")
        missing = self.layout.missing(fields)
        if missing is not None:
            if other := fitting(fields):
                there = f" ({place_word(self.file.name)} {first:,})" if first else ""
                article = "an" if other[0][0] in "aeiou" else "a"
                raise Fault(
                    f"{article} {other[0]} row in a file of {self.layout.name} rows{there}", "give each layout a file of its own"
                )
            raise Fault(f"no {missing}", f"give the {missing} in every row")
        return self.layout.read(fields, origin, self.tags)
