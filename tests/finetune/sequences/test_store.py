"""A store gives back what was written, says what was left out, and notices damage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from owngpt.errors import DataError, UsageError
from owngpt.finetune.examples.example import Origin
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.store import LEARNED, ExampleStore, write_store


def sequence(length: int, line: int, learned: int | None = None, label: int = -1, first_id: int = 0) -> Encoded:
    """``length`` tokens whose last ``learned`` ones are learned; all but the first by default."""
    mask = np.zeros(length, dtype=bool)
    mask[length - (length - 1 if learned is None else learned) :] = True
    return Encoded(np.arange(first_id, first_id + length), mask, Origin("chats.jsonl", line), label)


def assert_same(one: Encoded, other: Encoded) -> None:
    assert (one.token_ids.tolist(), one.learned.tolist(), one.origin, one.label) == (
        other.token_ids.tolist(), other.learned.tolist(), other.origin, other.label,
    )  # fmt: skip


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    given = [sequence(9, 1, 4), sequence(3, 2), sequence(5, 7, first_id=200_000), sequence(4, 8, 0, label=3)]
    store = write_store(given, tmp_path / "store", context_length=16)
    opened = ExampleStore.open(tmp_path / "store")
    assert len(opened) == 4 and opened.fingerprint == store.fingerprint
    for mine, theirs in zip(given, opened, strict=True):
        assert_same(mine, theirs)
    assert opened.lengths.tolist() == [9, 3, 5, 4]
    assert opened.targets.tolist() == [4, 2, 4, 0]
    assert opened.labels.tolist() == [-1, -1, -1, 3]
    assert (opened.stats.examples, opened.stats.tokens, opened.stats.learned, opened.stats.longest) == (4, 21, 10, 9)
    assert opened.stats == store.stats
    assert opened.stats.sentence() == "4 sequences, 21 tokens, 10 of them learned (48%), the longest 9"


def test_writing_streams(tmp_path: Path) -> None:
    alive = 0

    def many() -> Iterator[Encoded]:
        nonlocal alive
        for line in range(300):
            size = (tmp_path / "store" / "tokens.bin").stat().st_size if line else 0
            alive = max(alive, line * 4000 - size)
            yield sequence(1000, line + 1)

    store = write_store(many(), tmp_path / "store", context_length=1000)
    assert len(store) == 300
    assert alive < 2**17, "sequences wait in memory instead of going to the file"
    assert_same(store.example(299), sequence(1000, 300))


@pytest.mark.parametrize("overflow", ["drop", "split", "error"])
def test_too_long_a_sequence(tmp_path: Path, overflow: str) -> None:
    given = [sequence(5, 1), sequence(20, 2), sequence(31, 3)]
    if overflow == "error":
        with pytest.raises(DataError, match=r"chats.jsonl:2: 20 tokens, more than the context of 8; .*--overflow drop or split"):
            write_store(given, tmp_path / "store", context_length=8, overflow="error")
        assert not (tmp_path / "store" / "manifest.json").exists()
        return
    store = write_store(given, tmp_path / "store", context_length=8, overflow=overflow)  # type: ignore[arg-type]
    assert store.stats.longest_given == 31
    if overflow == "drop":
        assert len(store) == 1 and store.stats.dropped.count == 2
        assert "too long, left out: 2 (chats.jsonl:2, chats.jsonl:3)" in store.stats.sentence()
    else:
        assert max(store.lengths) <= 8 and store.stats.split.count == 2
        assert store.stats.learned == 4 + 19 + 30, "every token but the first of each text is learned, and once"
        parts = [part for part in store if part.origin.line == 2]
        joined = [*parts[0].token_ids, *(token for part in parts[1:] for token in part.token_ids[1:])]
        assert joined == list(range(20)) and not any(part.learned[0] for part in parts)


def test_parts_of_a_split_sequence_without_anything_learned_are_left_out(tmp_path: Path) -> None:
    store = write_store([sequence(30, 1, learned=1)], tmp_path / "store", context_length=8, overflow="split")
    assert len(store) == 1 and store.stats.learned == 1


def test_a_long_text_with_a_label_keeps_its_beginning(tmp_path: Path) -> None:
    store = write_store([sequence(30, 1, 0, label=2)], tmp_path / "store", context_length=8, overflow="split")
    assert len(store) == 1 and store.example(0).token_ids.tolist() == list(range(8)) and store.labels.tolist() == [2]
    assert store.stats.shortened.count == 1


def test_pairs_are_kept_or_left_out_together(tmp_path: Path) -> None:
    given = [
        sequence(5, 1), sequence(4, 1), sequence(5, 2), sequence(20, 2), sequence(6, 3), sequence(6, 3), sequence(3, 4),
        sequence(9, 4),
    ]  # fmt: skip
    store = write_store(given, tmp_path / "store", context_length=16, pairs=True)
    assert store.pairs and [example.origin.line for example in store] == [1, 1, 4, 4]
    assert store.stats.dropped.first == ["chats.jsonl:2"] and store.stats.equal.first == ["chats.jsonl:3"]
    with pytest.raises(DataError, match="chats.jsonl:4: a preference has one answer"):
        write_store(given[:-1], tmp_path / "odd", context_length=16, pairs=True)
    with pytest.raises(UsageError, match="a preference cannot be split"):
        write_store(given, tmp_path / "cut", context_length=16, pairs=True, overflow="split")


def test_sequences_in_which_nothing_is_learned_are_left_out_and_counted(tmp_path: Path) -> None:
    store = write_store([sequence(5, 1, 0), sequence(5, 2)], tmp_path / "store", context_length=16)
    assert len(store) == 1 and "without anything to learn, left out: 1 (chats.jsonl:1)" in store.stats.sentence()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "there is no example"),
        ([sequence(5, 1, 0), sequence(4, 2, 0)], r"nothing would be learned: every token of 2 \(chats.jsonl:1, chats.jsonl:2\)"),
        (
            [sequence(50, 1), sequence(40, 2)],
            r"every example is too long: 2 .* more than 16 tokens, the longest 50; use --context-l",
        ),
    ],
)
def test_an_empty_store_says_why(tmp_path: Path, given: list[Encoded], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        write_store(given, tmp_path / "store", context_length=16)


def test_equal_pairs_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="in every pair chosen and rejected are the same"):
        write_store([sequence(5, 1), sequence(5, 1)], tmp_path / "store", context_length=16, pairs=True)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest", "format"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "store"
    write_store([sequence(5, 1)], folder, context_length=16)
    tokens, manifest = folder / "tokens.bin", folder / "manifest.json"
    if damage == "flip":
        tokens.write_bytes(b"\x01" + tokens.read_bytes()[1:])
    elif damage == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-4])
    elif damage == "gone":
        tokens.unlink()
    elif damage == "manifest":
        manifest.write_text("{}")
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": "examples 99"}))
    with pytest.raises(DataError, match="delete .* and start again"):
        ExampleStore.open(folder)


def test_an_interrupted_store_is_written_anew_and_a_strangers_folder_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def interrupted() -> Iterator[Encoded]:
        yield sequence(5, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(interrupted(), folder, context_length=16)
    with pytest.raises(DataError):
        ExampleStore.open(folder)
    assert len(write_store([sequence(5, 1)], folder, context_length=16)) == 1
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("mine")
    with pytest.raises(UsageError, match="already holds something else"):
        write_store([sequence(5, 1)], tmp_path / "thesis", context_length=16)


def test_the_fingerprint_tells_stores_apart(tmp_path: Path) -> None:
    one = write_store([sequence(5, 1)], tmp_path / "one", context_length=16)
    same = write_store([sequence(5, 1)], tmp_path / "same", context_length=16)
    other = write_store([sequence(5, 1, learned=2)], tmp_path / "other", context_length=16)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert int(LEARNED) == 2**31
