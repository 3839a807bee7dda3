"""The corpus: everything that the sources hold, cleaned, without duplicates, divided into training and validation text.

On disk it is one UTF-8 file and two arrays of byte ranges, so nothing is ever held in memory whole, and a removed or
held-out document costs no copy.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from owngpt.config.data import DataConfig
from owngpt.config.files import sha256_of_file, storage_errors
from owngpt.data.duplicates import group_documents
from owngpt.data.files import CORPUS_FILE, TEXT_FILE, own_folder, read_json, write_json
from owngpt.data.progress import READING, Progress, Stage
from owngpt.data.report import DataReport, Removed, corpus_warnings, length_bucket, sources_listed
from owngpt.data.sources import ReadLog, SourceFile, documents, list_files, remedy, shown_name
from owngpt.data.split import Range, Split, split_documents
from owngpt.data.staging import Staging
from owngpt.data.text_split import TextSplit, character_count, mapped
from owngpt.errors import DataError
from owngpt.text.language import detect_language

CODE_VERSION = 2
"""Raised whenever the same sources and settings would give another corpus."""
LEAST_BYTES = 256
_SAMPLE_BYTES = 400
_LANGUAGE_DOCUMENTS, _LANGUAGE_BYTES = 1000, 8000
_FILES = frozenset({CORPUS_FILE, TEXT_FILE, "train.npy", "validation.npy"})


@dataclass(frozen=True)
class Corpus:
    """Cleaned, de-duplicated and divided text on disk."""

    folder: Path
    train: TextSplit
    validation: TextSplit
    report: DataReport
    fingerprint: str
    """SHA-256 over the sources (paths, sizes, times), the settings and this code's version."""
    text_sha256: str
    """SHA-256 of the text file."""

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Corpus:
        """Open what :func:`collect` wrote.

        Raises:
            DataError: a file is missing or damaged.
        """
        path = Path(folder)
        described = read_json(path / CORPUS_FILE)
        try:
            report = DataReport.from_dict(described["report"])
            if sha256_of_file(path / TEXT_FILE) != described["text_sha256"]:
                raise ValueError("the text differs from its SHA-256")
            splits = [
                TextSplit(path / TEXT_FILE, _load_ranges(path, name, described), int(described[name]["characters"]))
                for name in ("train", "validation")
            ]
            return cls(path, splits[0], splits[1], report, described["fingerprint"], described["text_sha256"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the corpus in {path} is damaged ({error}); delete that folder and prepare the data again"
            ) from error


def collect(
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    config: DataConfig | None = None,
    *,
    leave_out: Sequence[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Corpus:
    """Read `sources` (files, folders, names of corpora) into a corpus in `folder`, or reuse the one already there.

    A corpus is used again when paths, sizes and times of the sources, the settings and the code are the same and its
    text is undamaged. Folders in `leave_out`, such as the run's own output, and what OwnGPT or another trainer wrote before
    are not read. `say` is told what is about to be downloaded, with licence and size.

    Raises:
        DataError: there is no usable text. UsageError: the folder holds something else. StorageError: it cannot be written.
    """
    from owngpt.data.corpora import resolve

    config = config or DataConfig()
    target = Path(folder)
    log = ReadLog()
    files = list_files(resolve(sources, say=say), log, leave_out=[target, *leave_out])
    own_folder(target, CORPUS_FILE, _is_ours)
    fingerprint = _fingerprint(files, config)
    if (ready := _reusable(target, fingerprint)) is not None:
        return ready
    with storage_errors(target):
        (target / CORPUS_FILE).unlink(missing_ok=True)
        report = DataReport(source_files=len(files))
        staging = Staging(target / TEXT_FILE, config, report)
        _read_all(files, log, staging, progress)
        _check_enough(report, log, staging, sources)
        _write(target, staging, config, progress)
    _complete_report(report, log, files)
    _describe(target, report, fingerprint)
    return Corpus.load(target)


def _is_ours(name: str) -> bool:
    return name in _FILES or name.startswith(f".{CORPUS_FILE}")


def _fingerprint(files: Sequence[SourceFile], config: DataConfig) -> str:
    digest = hashlib.sha256(f"corpus {CODE_VERSION}\n".encode())
    settings = {name: value for name, value in asdict(config).items() if name != "workers"}
    digest.update(repr(sorted(settings.items())).encode())
    for file in files:
        digest.update(f"{os.path.abspath(file.path)}\0{file.size}\0{file.modified_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _reusable(folder: Path, fingerprint: str) -> Corpus | None:
    if not (folder / CORPUS_FILE).exists():
        return None
    try:
        ready = Corpus.load(folder)
    except DataError:
        return None
    return ready if ready.fingerprint == fingerprint else None


def _read_all(files: Sequence[SourceFile], log: ReadLog, staging: Staging, progress: Progress | None) -> None:
    with Stage(progress, READING, sum(file.size for file in files)) as stage, staging:
        for document in documents(files, log):
            staging.add(document)
            stage.reach(log.bytes_read)


def _check_enough(report: DataReport, log: ReadLog, staging: Staging, sources: Sequence[str | os.PathLike[str]]) -> None:
    names = ", ".join(map(shown_name, list(sources)[:3]))
    if not staging.ranges:
        reasons = [f"{count} × {reason} ({log.samples[reason][0]})" for reason, count in log.skipped.most_common(3)]
        reasons += [f"{removed.documents} × {reason}" for reason, removed in report.removed.items()]
        fix = remedy(log.skipped.most_common(1)[0][0]) if log.skipped else "give files that hold text"
        raise DataError(f"no text could be read from {names}: {', '.join(reasons)}; {fix}")
    size = sum(stop - start for start, stop in staging.ranges)
    if size < LEAST_BYTES:
        raise DataError(f"{names} holds only {size} bytes of text, and at least {LEAST_BYTES} are needed; add more text")


def _write(target: Path, staging: Staging, config: DataConfig, progress: Progress | None) -> None:
    """Find duplicates, divide, and write the ranges; the text itself stays where it is."""
    with mapped(target / TEXT_FILE) as text:
        kept, near = _near_duplicates(text, staging, config, progress)
        ranges = [staging.ranges[number] for number in kept]
        split = split_documents(
            text,
            ranges,
            [staging.digests[number] for number in kept],
            near,
            fraction=config.validation_fraction,
            seed=config.seed,
            progress=progress,
        )
        characters = {"train": character_count(text, split.train), "validation": character_count(text, split.validation)}
        staging.report.languages = _languages(text, ranges)
    report = staging.report
    for name, rows in (("train", split.train), ("validation", split.validation)):
        np.save(target / f"{name}.npy", rows, allow_pickle=False)
        size = int((rows[:, 1] - rows[:, 0]).sum())
        setattr(report, name, {"documents": len(rows), "bytes": size, "characters": characters[name]})
    _count(report, staging, kept, split)


def _count(report: DataReport, staging: Staging, kept: list[int], split: Split) -> None:
    report.documents = len(kept)
    report.bytes = report.train["bytes"] + report.validation["bytes"]
    report.characters = report.train["characters"] + report.validation["characters"]
    report.repeated_validation_bytes = split.repeated_bytes
    sizes = [staging.ranges[number][1] - staging.ranges[number][0] for number in kept]
    report.lengths = dict(Counter(length_bucket(size) for size in sizes))
    report.median_length, report.longest = int(np.median(sizes)), max(sizes)
    report.warnings = corpus_warnings(report.train["bytes"], report.validation["bytes"], split.shares_text)


def _languages(text: mmap.mmap, ranges: Sequence[Range]) -> dict[str, int]:
    """Bytes by language, estimated from the beginnings of documents spread over the corpus."""
    measured = Counter[str]()
    for start, stop in ranges[:: 1 + len(ranges) // _LANGUAGE_DOCUMENTS]:
        head = text[start : min(start + _LANGUAGE_BYTES, stop)].decode("utf-8", errors="ignore")
        measured[detect_language(head)] += stop - start
    total, seen = sum(stop - start for start, stop in ranges), measured.total()
    return {language: round(count * total / seen) for language, count in measured.most_common()}


def _near_duplicates(
    text: mmap.mmap, staging: Staging, config: DataConfig, progress: Progress | None
) -> tuple[list[int], np.ndarray]:
    """Numbers of the documents to keep, and for each of them the group that must stay on one side of the split."""
    firsts = group_documents(text, staging.ranges, staging.digests, config.near_duplicate_threshold, progress)
    everything = list(range(len(firsts)))
    if not (config.deduplicate and config.near_duplicates):
        return everything, firsts
    kept = [number for number in everything if firsts[number] == number]
    removed = Removed()
    for number in everything:
        if firsts[number] != number:
            start, stop = staging.ranges[number]
            head = bytes(text[start : min(start + _SAMPLE_BYTES, stop)]).decode("utf-8", errors="ignore")
            removed.add(staging.sources[number], head, stop - start)
    if removed.documents:
        staging.report.removed["nearly equal to an earlier document"] = removed
    return kept, np.arange(len(kept), dtype=np.int64)


def _complete_report(report: DataReport, log: ReadLog, files: Sequence[SourceFile]) -> None:
    report.source_bytes = log.bytes_read
    report.sources = sources_listed(log.hashes, {file.name: file.size for file in files})
    report.encodings = dict(log.encodings)
    report.skipped, report.skipped_samples = dict(log.skipped), log.samples
    report.notes = log.notes


def _describe(target: Path, report: DataReport, fingerprint: str) -> None:
    with storage_errors(target):
        text_sha256 = sha256_of_file(target / TEXT_FILE)
    described: dict[str, Any] = {"fingerprint": fingerprint, "text_sha256": text_sha256, "report": report.to_dict()}
    for name, counts in (("train", report.train), ("validation", report.validation)):
        described[name] = counts | {"sha256": sha256_of_file(target / f"{name}.npy")}
    write_json(target / CORPUS_FILE, described)


def _load_ranges(folder: Path, name: str, described: dict[str, Any]) -> np.ndarray:
    path = folder / f"{name}.npy"
    if sha256_of_file(path) != described[name]["sha256"]:
        raise ValueError(f"{path.name} differs from its SHA-256")
    ranges = np.load(path, allow_pickle=False)
    if ranges.dtype != np.int64 or ranges.ndim != 2 or ranges.shape[1] != 2:
        raise ValueError(f"{path.name} holds no ranges")
    return ranges
