"""Sources to tokens in one call: `owngpt data prepare`, and the same steps that `owngpt train` takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

from owngpt.config.data import DataConfig
from owngpt.data.corpus import Corpus, collect
from owngpt.data.files import CORPUS_FILE, PREPARED_FILE, check_own, read_json, write_json
from owngpt.data.progress import LEARNING, Progress, Stage
from owngpt.data.report import DataReport
from owngpt.data.shards import PreparedData, tokenize
from owngpt.errors import DataError, ModelFolderError, UsageError
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

CORPUS_FOLDER, TOKENIZER_FOLDER, TOKENS_FOLDER = "corpus", "tokenizer", "tokens"
TRAINED_KINDS = ("bpe", "byte", "char")
_TOKENIZER_SAMPLE_BYTES = 64 * 2**20
Kind = Literal["bpe", "byte", "char"]


def prepare(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] = "bpe",
    vocab_size: int = 4096,
    config: DataConfig | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> PreparedData:
    """Collect `sources`, train or open the tokenizer, and encode; what is already there and still fits is used again.

    `output` gets the folders `corpus`, `tokenizer` and `tokens`, and `prepared.json`, written last. `tokenizer` is "bpe",
    "byte" or "char" to train one on the training text (`vocab_size` tokens, special ones included), or a folder or file
    that holds one.

    Raises:
        DataError: there is no usable text. UsageError: the tokenizer is unknown or the folder holds something else.
        StorageError: the folder cannot be written.
    """
    config = config or DataConfig()
    chosen = _open_tokenizer(tokenizer)
    folder = Path(output)
    check_own(folder, PREPARED_FILE, _is_ours)
    corpus = collect(sources, folder / CORPUS_FOLDER, config, leave_out=[folder], progress=progress, say=say)
    if chosen is None:
        chosen = _trained_tokenizer(folder, corpus, str(tokenizer), vocab_size, progress)
    else:
        chosen.save(folder / TOKENIZER_FOLDER)
    data = tokenize(corpus, chosen, folder / TOKENS_FOLDER, workers=config.workers, progress=progress)
    write_json(folder / PREPARED_FILE, _made_from(corpus, str(tokenizer), vocab_size) | {"fingerprint": chosen.fingerprint})
    return data


def find_report(folder: str | os.PathLike[str]) -> DataReport:
    """The report of prepared data: `folder` is the output of :func:`prepare`, a run, or the corpus folder itself.

    Raises:
        DataError: no corpus was prepared there, or it is damaged.
    """
    path = Path(folder)
    for candidate in (path, path / CORPUS_FOLDER, path / "run" / "data" / "text"):
        if (candidate / CORPUS_FILE).exists():
            try:
                return DataReport.from_dict(read_json(candidate / CORPUS_FILE)["report"])
            except (KeyError, TypeError) as error:
                raise DataError(f"{candidate / CORPUS_FILE} is damaged ({error!r}); prepare the data again") from error
    raise DataError(f"{path} holds no prepared data; make some with: owngpt data prepare SRC -o {path}")


def _open_tokenizer(tokenizer: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer at a path, or none for a kind that is trained; checked before any work is done."""
    if str(tokenizer) in TRAINED_KINDS:
        return None
    if not Path(tokenizer).exists():
        raise UsageError(
            f"tokenizer {str(tokenizer)!r} is neither one of {', '.join(TRAINED_KINDS)} nor a folder or file that exists; "
            "name one of these"
        )
    return Tokenizer.load(Path(tokenizer))


def _trained_tokenizer(folder: Path, corpus: Corpus, kind: str, vocab_size: int, progress: Progress | None) -> Tokenizer:
    target = folder / TOKENIZER_FOLDER
    if (ready := _reusable_tokenizer(folder, target, _made_from(corpus, kind, vocab_size))) is not None:
        return ready
    texts = corpus.train.sample(_TOKENIZER_SAMPLE_BYTES)
    with Stage(progress, LEARNING, sum(map(len, texts)), "characters") as stage:
        trained = train_tokenizer(texts, kind=cast("Kind", kind), vocab_size=vocab_size, progress=stage.reach)
    trained.save(target)
    return trained


def _reusable_tokenizer(folder: Path, target: Path, made_from: dict[str, object]) -> Tokenizer | None:
    if not (folder / PREPARED_FILE).exists():
        return None
    try:
        before = read_json(folder / PREPARED_FILE)
        if any(before.get(name) != value for name, value in made_from.items()):
            return None
        ready = Tokenizer.load(target)
    except (DataError, ModelFolderError):
        return None
    return ready if ready.fingerprint == before.get("fingerprint") else None


def _made_from(corpus: Corpus, tokenizer: str, vocab_size: int) -> dict[str, object]:
    return {"corpus": corpus.fingerprint, "tokenizer": tokenizer, "vocab_size": vocab_size}


def _is_ours(name: str) -> bool:
    return name in (CORPUS_FOLDER, TOKENIZER_FOLDER, TOKENS_FOLDER) or name.startswith(f".{PREPARED_FILE}")
