"""Batches hold every example once an epoch, each apart from its neighbours, in an order that the seed alone decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from owngpt.data.shards import TokenSplit
from owngpt.errors import CheckpointError, UsageError
from owngpt.finetune.examples.example import Origin
from owngpt.finetune.sequences.batches import ExampleBatches, ReplaySource, held_out_batches, make_batch
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.store import ExampleStore, write_store


def sequence(number: int, length: int, learned: int = 2) -> Encoded:
    """Ids that tell the sequence: 100 * its number + place."""
    mask = np.arange(length) >= length - learned
    return Encoded(100 * number + np.arange(length), mask, Origin("a.jsonl", number), -1)


def make_store(folder: Path, count: int = 23, longest: int = 30) -> ExampleStore:
    lengths = np.random.default_rng(0).integers(3, longest + 1, count)
    return write_store((sequence(index + 1, int(length)) for index, length in enumerate(lengths)), folder, context_length=longest)


def numbers(batch) -> list[int]:
    """The sequences in a batch, by their first id."""
    return [int(token) // 100 for token in batch.inputs.flatten() if int(token) and int(token) % 100 == 0]


def test_a_row_is_its_sequences_side_by_side() -> None:
    rows = [[sequence(1, 4), sequence(2, 3, learned=1)], [sequence(3, 2, learned=1)]]
    batch = make_batch(rows, 0.5, padding_id=7)
    assert batch.inputs.shape == (2, 16) and batch.epoch == 0.5
    assert batch.inputs[0].tolist() == [100, 101, 102, 200, 201] + [7] * 11
    assert batch.targets[0].tolist() == [-100, 102, 103, -100, 202] + [-100] * 11
    assert batch.starts is not None and batch.starts[0].tolist() == [0, 0, 0, 3, 3] + [5] * 11
    assert batch.inputs[1].tolist() == [300] + [7] * 15 and batch.targets[1, 0] == 301
    assert batch.starts.dtype == torch.int32 and batch.inputs.dtype == batch.targets.dtype == torch.int64


def test_the_end_token_is_learned_even_where_it_is_the_padding_too() -> None:
    end = Encoded(np.array([5, 9, 2]), np.array([False, True, True]), Origin("a", 1))
    batch = make_batch([[end]], 0.0, padding_id=2)
    assert batch.targets[0].tolist() == [9, 2] + [-100] * 14


def test_rows_are_as_long_as_the_longest_needs() -> None:
    assert make_batch([[sequence(1, 18)], [sequence(2, 17)]], 0.0).inputs.shape == (2, 32)
    assert make_batch([[sequence(1, 17)]], 0.0).inputs.shape == (1, 16), "the last token is a target only"


@pytest.mark.parametrize(("context_length", "wanted"), [(20, 20), (32, 32), (64, 32), (17, 17)])
def test_rows_of_one_sequence_are_not_filled_up_beyond_the_context(context_length: int, wanted: int) -> None:
    rows = [[sequence(1, 18)], [sequence(2, 5)]]
    batch = make_batch(rows, 0.0, packed=False, context_length=context_length)
    assert batch.inputs.shape == batch.targets.shape == (2, wanted)


@pytest.mark.parametrize("pack", [True, False])
def test_an_epoch_shows_every_sequence_once_in_an_order_of_its_own(tmp_path: Path, pack: bool) -> None:
    store = make_store(tmp_path / "store")
    batches = ExampleBatches(store, context_length=64, batch_size=1, seed=5, pack=pack)
    assert batches.rows_per_epoch == batches.steps_per_epoch
    epochs = [[number for _ in range(batches.rows_per_epoch) for number in numbers(batches.next())] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1, 24))
    assert epochs[0] != epochs[1] and batches.epoch == 2.0
    assert batches.rows_per_epoch < 23 if pack else batches.rows_per_epoch == 23
    targets = ExampleBatches(store, context_length=64, batch_size=batches.rows_per_epoch, seed=5, pack=pack).next().targets
    assert int((targets >= 0).sum()) == store.stats.learned


def test_packing_fills_the_rows(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", count=400)
    assert ExampleBatches(store, context_length=128, batch_size=4, seed=1).fill > 0.97


def test_without_packing_neighbours_have_nearly_one_length(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", count=320)
    batches = ExampleBatches(store, context_length=30, batch_size=16, seed=1, pack=False)
    spreads = [(lengths := (batches.next().inputs > 0).sum(1)).max() - lengths.min() for _ in range(20)]
    assert all(spread <= 3 for spread in spreads)
    assert batches.next().starts is None


@pytest.mark.parametrize("pack", [True, False])
def test_the_order_does_not_depend_on_the_batch_size(tmp_path: Path, pack: bool) -> None:
    store = make_store(tmp_path / "store")
    one, four = (ExampleBatches(store, context_length=40, batch_size=size, seed=3, pack=pack) for size in (1, 4))
    assert [number for _ in range(12) for number in numbers(one.next())] == [
        number for _ in range(3) for number in numbers(four.next())
    ]


@pytest.mark.parametrize("pack", [True, False])
def test_a_resumed_stream_is_the_same(tmp_path: Path, pack: bool) -> None:
    store = make_store(tmp_path / "store")

    def stream() -> ExampleBatches:
        replay = ReplaySource(store, 0.25)
        return ExampleBatches(store, context_length=40, batch_size=3, seed=3, pack=pack, replay=replay)

    whole, resumed = stream(), stream()
    for _ in range(7):
        whole.next()
    resumed.load_state_dict(whole.state_dict())
    for _ in range(9):  # past the end of an epoch
        mine, theirs = resumed.next(), whole.next()
        assert torch.equal(mine.inputs, theirs.inputs) and torch.equal(mine.targets, theirs.targets)
        assert mine.epoch == theirs.epoch
    assert all(isinstance(value, int) for value in whole.state_dict().values())


def test_ranks_share_every_batch(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    alone = ExampleBatches(store, context_length=40, batch_size=4, seed=3)
    ranks = [ExampleBatches(store, context_length=40, batch_size=2, seed=3, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(6):
        assert numbers(alone.next()) == [number for rank in ranks for number in numbers(rank.next())]
    assert alone.state_dict() == ranks[0].state_dict() == ranks[1].state_dict()
    assert alone.epoch == ranks[1].epoch and alone.steps_per_epoch == ranks[0].steps_per_epoch


def test_another_store_or_seed_is_not_resumed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    batches = ExampleBatches(store, context_length=40, batch_size=3, seed=3)
    for changed in (
        ExampleBatches(store, context_length=40, batch_size=3, seed=4),
        ExampleBatches(store, context_length=48, batch_size=3, seed=3),
        ExampleBatches(store, context_length=40, batch_size=3, seed=3, pack=False),
        ExampleBatches(store, context_length=40, batch_size=3, seed=3, replay=ReplaySource(store, 0.1)),
        ExampleBatches(make_store(tmp_path / "other", count=22), context_length=40, batch_size=3, seed=3),
    ):
        with pytest.raises(CheckpointError, match="resume with the same examples and settings"):
            changed.load_state_dict(batches.state_dict())
    with pytest.raises(CheckpointError, match="lacks 'tokens'"):
        batches.load_state_dict({name: value for name, value in batches.state_dict().items() if name != "tokens"})


def test_wrong_sizes_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    with pytest.raises(UsageError, match=f"a sequence has {store.stats.longest} tokens, more than the context of 8"):
        ExampleBatches(store, context_length=8, batch_size=3, seed=3)
    with pytest.raises(UsageError, match="batch size 0 is not positive"):
        ExampleBatches(store, context_length=40, batch_size=0, seed=3)
    with pytest.raises(UsageError, match="rank 2 is outside of a world of 2"):
        ExampleBatches(store, context_length=40, batch_size=1, seed=3, rank=2, world_size=2)
    with pytest.raises(UsageError, match="replay 1.0 is not a share"):
        ReplaySource(store, 1.0)


def test_replayed_rows_are_spread_evenly_and_are_no_part_of_the_epoch(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    general = write_store((sequence(500 + index, 20) for index in range(9)), tmp_path / "general", context_length=20)
    batches = ExampleBatches(store, context_length=30, batch_size=1, seed=3, replay=ReplaySource(general, 0.2))
    rows = [numbers(batches.next()) for _ in range(batches.rows_per_epoch * 5 // 4)]
    replayed = [index for index, row in enumerate(rows) if min(row) >= 500]
    assert replayed == list(range(4, len(rows), 5))
    assert sorted(number for row in rows for number in row if number < 500) == list(range(1, 24))
    assert batches.epoch == pytest.approx(1.0, abs=0.1)
    assert batches.steps_per_epoch == pytest.approx(batches.rows_per_epoch / 0.8)


def test_tokenized_text_is_replayed_a_document_at_a_time(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    tokens = np.array([0, 11, 12, 13, 0, 21, 22, 23, 24, 25, 0, 31, 0], dtype=np.uint16)
    split = TokenSplit((tokens,), len(tokens), 40, 3, end_of_text_id=0)
    batches = ExampleBatches(store, context_length=30, batch_size=1, seed=3, replay=ReplaySource(split, 0.5))
    seen = set()
    for _ in range(12):
        batch = batches.next()
        inputs, targets, starts = (tensor[0].tolist() for tensor in (batch.inputs, batch.targets, batch.starts))
        if max(inputs) >= 100:
            continue
        length = len(tokens) - 1
        assert all(target >= 0 for target in targets[:length])
        for place in range(length):
            if inputs[place] == 0:
                assert starts[place] == place
            assert starts[place] == place or starts[place] == starts[place - 1]
            if targets[place] != 0 and inputs[place] != 0:
                assert targets[place] == inputs[place] + 1
            seen.add((inputs[place], targets[place]))
    assert {(0, 11), (13, 0), (25, 0), (0, 31), (31, 0)} <= seen


@pytest.mark.parametrize("pack", [True, False])
def test_held_out_batches_are_always_the_same(tmp_path: Path, pack: bool) -> None:
    store = make_store(tmp_path / "store")
    batches = held_out_batches(store, context_length=40, batch_size=4, pack=pack)
    assert sorted(number for batch in batches for number in numbers(batch)) == list(range(1, 24))
    again = held_out_batches(store, context_length=40, batch_size=4, pack=pack)
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(batches, again, strict=True))
    assert sum(int((batch.targets >= 0).sum()) for batch in batches) == store.stats.learned
    some = held_out_batches(store, context_length=40, batch_size=4, pack=pack, max_tokens=100)
    assert 0 < sum(int((batch.inputs > 0).sum()) for batch in some) <= 100
    assert held_out_batches(store, context_length=40, batch_size=4, pack=pack, max_tokens=1)
