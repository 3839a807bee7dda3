"""Score files: whatever the data room can read, as it stands there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from owngpt.data.sources import ReadLog, documents
from owngpt.errors import DataError
from owngpt.evaluate.bits import Progress, Score, score_text
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer


def score_files(
    model: GPT,
    tokenizer: Tokenizer,
    paths: Iterable[str | Path],
    *,
    context_length: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score the documents of files and folders (txt, md, code, jsonl, csv, parquet …).

    The text is decoded and otherwise left as it is: no repair, no deduplication; bytes are those of its UTF-8 form. Other
    files of a folder are passed over. A document of more than a megabyte is scored in parts of a megabyte.
    Parameters and errors are those of :func:`owngpt.evaluate.bits.score_text`.

    :raises DataError: when a path does not exist or gives no text.
    """
    named = [Path(path) for path in paths]
    if not named:
        raise DataError("there is nothing to score: name at least one file or folder")
    return score_text(model, tokenizer, _texts(named), context_length=context_length, stride=stride, progress=progress)


def _texts(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        log, empty = ReadLog(), True
        for document in documents([path], log):
            empty = empty and not document.text
            yield document.text
        if empty:
            reason = next(iter(log.skipped), "it is empty")
            raise DataError(f"{path} gives no text to score ({reason}); leave it out or name another file")
