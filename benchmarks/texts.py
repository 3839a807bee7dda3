"""Which files are trained on and which are held out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from owngpt.data.corpora import fetch
from owngpt.data.sources import list_files

HELD_OUT = {"shakespeare": ("hamlet", "twelfth_night")}
"""Held-out files of a named corpus; of other corpora it is every twentieth file."""


@dataclass(frozen=True)
class Texts:
    """Files of both kinds; none is in both."""

    name: str
    train: tuple[Path, ...]
    held: tuple[Path, ...]

    def to_dict(self) -> dict[str, object]:
        """For JSON: names and sizes, not paths."""
        return {
            "name": self.name,
            "train_files": len(self.train),
            "train_bytes": sum(path.stat().st_size for path in self.train),
            "held_files": [path.name for path in self.held],
            "held_bytes": sum(path.stat().st_size for path in self.held),
        }


def texts(corpus: str | None, train: Sequence[Path], held: Sequence[Path]) -> Texts:
    """From a corpus's name, or from files and folders; held-out files inside of a training folder are taken out of it."""
    if bool(corpus) == bool(train or held) or bool(train) != bool(held):
        raise SystemExit("give either --corpus NAME, or both --train and --held with files or folders")
    if corpus:
        return _named(corpus)
    scored = {os.path.realpath(file.path): file.path for file in list_files(held)}
    learned = [file.path for file in list_files(train) if os.path.realpath(file.path) not in scored]
    if not learned:
        raise SystemExit("every training file is held out as well; name other files with --train or --held")
    return Texts(train[0].name, tuple(learned), tuple(scored.values()))


def _named(corpus: str) -> Texts:
    files = fetch(corpus)
    names = HELD_OUT.get(corpus)
    held = [path for index, path in enumerate(files) if (path.stem in names if names else index % 20 == 7)]
    if not held or len(held) == len(files):
        raise SystemExit(f"{corpus} has {len(files)} files, too few to hold some out; give --train and --held")
    return Texts(corpus, tuple(path for path in files if path not in held), tuple(held))
