"""Documents on their way into the text file: cleaned, masked, and compared with what was seen before."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from owngpt.config.data import DataConfig
from owngpt.data.clean import clean
from owngpt.data.personal import mask
from owngpt.data.report import DataReport, Removed
from owngpt.data.sources import Document

_SAMPLE_CHARACTERS = 400


class Staging:
    """Appends documents to one file; a document that turns out empty or seen before is taken back.

    After use: `ranges`, `digests` and `sources` describe each document in the file, in order.
    """

    def __init__(self, path: Path, config: DataConfig, report: DataReport) -> None:
        self.report = report
        self.ranges: list[tuple[int, int]] = []
        self.digests: list[bytes] = []
        self.sources: list[str] = []
        self._path, self._config = path, config
        self._file: BinaryIO | None = None
        self._seen: set[bytes] = set()
        self._repaired: Counter[str] = Counter()
        self._masked: Counter[str] = Counter()
        self._open_document: tuple[str, int] | None = None
        self._start = self._end = 0
        self._head = ""
        self._blank = True
        self._digest = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> Staging:
        self._file = open(self._path, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._finish()
        self._file.truncate(self._end)
        self._file.close()
        self.report.repaired, self.report.masked = dict(self._repaired), dict(self._masked)

    def add(self, document: Document) -> None:
        """Append a document, or the next part of the one that was begun."""
        key = (document.source, document.index)
        if self._open_document not in (None, key):
            self._finish()  # its file broke off
        text = clean(document.text, repair=self._config.repair_text, counts=self._repaired)
        if self._config.mask_personal_data:
            text = mask(text, self._masked)
        if self._open_document is None:
            self._open_document = key
            self._head, self._blank = text[:_SAMPLE_CHARACTERS], True
            self._digest = hashlib.blake2b(digest_size=16)
        self._append(text)
        if document.last:
            self._finish()

    def _append(self, text: str) -> None:
        assert self._file is not None
        data = text.encode("utf-8")
        self._digest.update(data)
        self._file.write(data)
        self._end += len(data)
        self._blank = self._blank and not text.strip()

    def _finish(self) -> None:
        """Keep or take back the document that was begun."""
        if self._open_document is None:
            return
        source, _ = self._open_document
        self._open_document = None
        digest = self._digest.digest()
        if self._blank:
            self._take_back("empty", source)
        elif self._config.deduplicate and digest in self._seen:
            self._take_back("equal to an earlier document", source)
        else:
            self._seen.add(digest)
            self.ranges.append((self._start, self._end))
            self.digests.append(digest)
            self.sources.append(source)
            self._start = self._end

    def _take_back(self, reason: str, source: str) -> None:
        assert self._file is not None
        self.report.removed.setdefault(reason, Removed()).add(source, self._head, self._end - self._start)
        self._end = self._start
        self._file.seek(self._start)
