"""Rendering on all cores: a template takes about a millisecond a conversation, and a set may have a million.

A request is the JSON of some examples; an answer a uint32 size, that much JSON (what became of each example), and the tokens,
each a 32-bit word as in :mod:`owngpt.finetune.sequences.store`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from owngpt.data.processes import Processes, serve
from owngpt.errors import DataError
from owngpt.finetune.examples.example import Example, Origin
from owngpt.finetune.rendering.renderer import Renderer
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.kept_examples import example_of, example_values
from owngpt.finetune.sequences.store import from_words, words_of
from owngpt.text.tokenizer import Tokenizer

PARALLEL_FROM = 2000
"""Examples that make other processes worth their start."""
CHUNK = 128
"""Examples of a request."""
_SETTINGS = "renderer.json"
_WORD = np.dtype("<u4")
_NOWHERE = Origin("", 0)


@dataclass(frozen=True)
class Rendered:
    """What became of some examples."""

    results: list[list[Encoded] | str]
    """Of each example: its sequences, or why there are none."""
    notes: list[str]
    separate_turns: int
    has_template: bool


def encode_all(renderer: Renderer, examples: Iterable[Example], *, skip_bad: bool = False, workers: int = 0) -> Iterator[Encoded]:
    """What :meth:`Renderer.encode_all` gives, by several processes where that saves time; the order is the same.

    :param workers: processes, 0 for one a core; few examples take none.
    :raises DataError: an example cannot be rendered, unless ``skip_bad``.
    """
    from owngpt.kernels.machine import usable_cores  # not at the top: it imports torch, which the processes do not need

    count = workers or usable_cores()
    stream = iter(examples)
    first = list(islice(stream, PARALLEL_FROM))
    if count < 2 or len(first) < PARALLEL_FROM or renderer.template is not None:
        yield from renderer.encode_all(chain(first, stream), skip_bad=skip_bad)
        return
    settings = renderer.settings()
    twin = Renderer(renderer.tokenizer, **settings)
    with tempfile.TemporaryDirectory(prefix="owngpt-") as folder:
        renderer.tokenizer.save(folder)
        (Path(folder) / _SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
        with Processes("owngpt.finetune.rendering.pool", [folder], count) as processes:
            asked = processes.map(
                _chunks(chain(first, stream)), request=_request, parsed=_parsed, here=lambda chunk: _rendered(twin, chunk)
            )
            for chunk, rendered in asked:
                yield from _taken(renderer, chunk, rendered, skip_bad=skip_bad)


def _chunks(examples: Iterator[Example]) -> Iterator[list[Example]]:
    while chunk := list(islice(examples, CHUNK)):
        yield chunk


def _taken(renderer: Renderer, chunk: Sequence[Example], rendered: Rendered, *, skip_bad: bool) -> Iterator[Encoded]:
    """The sequences of a chunk; what was noted and chosen elsewhere is noted and chosen here."""
    if rendered.has_template:
        renderer.ensure_template()
    for note in rendered.notes:
        renderer.note(note)
    renderer.separate_turns += rendered.separate_turns
    for example, result in zip(chunk, rendered.results, strict=True):
        if isinstance(result, str):
            renderer.refuse(DataError(result), skip_bad=skip_bad)
        else:
            yield from (replace(encoded, origin=example.origin) for encoded in result)


def _rendered(renderer: Renderer, chunk: Sequence[Example]) -> Rendered:
    before = renderer.separate_turns
    results: list[list[Encoded] | str] = []
    for example in chunk:
        try:
            results.append(renderer.encode(example))
        except DataError as error:
            results.append(str(error))
    return Rendered(results, renderer.notes, renderer.separate_turns - before, renderer.tokenizer.chat_template is not None)


# --- frames ---


def _request(chunk: Sequence[Example]) -> bytes:
    return json.dumps([example_values(example) for example in chunk]).encode("ascii")


def _answer(rendered: Rendered) -> bytes:
    sequences = [encoded for result in rendered.results if not isinstance(result, str) for encoded in result]
    head = {
        "results": [
            result if isinstance(result, str) else [(len(encoded), encoded.label) for encoded in result]
            for result in rendered.results
        ],
        "notes": rendered.notes,
        "separate_turns": rendered.separate_turns,
        "has_template": rendered.has_template,
    }
    content = json.dumps(head).encode("ascii")
    words = [words_of(encoded).tobytes() for encoded in sequences]
    return b"".join([len(content).to_bytes(_WORD.itemsize, "little"), content, *words])


def _parsed(answer: bytes) -> Rendered:
    start = _WORD.itemsize + int.from_bytes(answer[: _WORD.itemsize], "little")
    head: dict[str, Any] = json.loads(answer[_WORD.itemsize : start])
    words = np.frombuffer(answer[start:], dtype=_WORD)
    place = 0
    results: list[list[Encoded] | str] = []
    for result in head.pop("results"):
        if isinstance(result, str):
            results.append(result)
            continue
        sequences = []
        for length, label in result:
            sequences.append(from_words(words[place : place + length], _NOWHERE, label))
            place += length
        results.append(sequences)
    return Rendered(results, **head)


def _serve(folder: Path) -> None:
    settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    renderer = Renderer(Tokenizer.load(folder), **settings)
    serve(lambda request: _answer(_rendered(renderer, [example_of(values) for values in json.loads(request)])))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
