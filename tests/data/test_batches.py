"""Batches visit every token once an epoch, in an order that the seed alone decides, and resume exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from owngpt.data.batches import IGNORED_TARGET, Batch, Batches, validation_batches
from owngpt.data.shards import TokenSplit
from owngpt.errors import CheckpointError, DataError, UsageError


def split_of(*documents: list[int]) -> TokenSplit:
    tokens = np.array([0, *(token for document in documents for token in [*document, 0])], dtype=np.uint16)
    return TokenSplit((tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]), len(tokens), 4 * len(tokens), len(documents), 0)


NUMBERED = split_of(list(range(1, 1000)))


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets) and one.epoch == other.epoch


def test_an_epoch_has_every_token_as_target_once() -> None:
    batches = Batches(NUMBERED, context_length=10, batch_size=5, seed=1)
    assert batches.windows_per_epoch == 100
    orders = []
    for epoch in range(3):
        epoch_batches = [batches.next() for _ in range(20)]
        targets = torch.cat([batch.targets for batch in epoch_batches]).flatten()
        assert sorted(targets.tolist()) == list(range(1000))
        assert epoch_batches[-1].epoch == epoch + 1
        orders.append(targets.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_targets_are_the_next_tokens_around_the_ring() -> None:
    batch = Batches(NUMBERED, context_length=250, batch_size=4, seed=3).next()
    assert torch.equal(batch.targets, (batch.inputs + 1) % 1000)
    assert torch.equal(batch.targets[:, :-1], batch.inputs[:, 1:])
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64


def test_a_resumed_stream_goes_on_exactly() -> None:
    one = Batches(NUMBERED, context_length=16, batch_size=4, seed=7)
    for _ in range(37):
        one.next()
    state = one.state_dict()
    other = Batches(NUMBERED, context_length=16, batch_size=4, seed=7)
    other.load_state_dict(state)
    assert all(isinstance(value, int) for value in state.values())
    assert all(same(one.next(), other.next()) for _ in range(50))


def test_seeds_differ_and_the_global_generators_are_not_touched() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = Batches(NUMBERED, context_length=16, batch_size=4, seed=1).next()
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(first.inputs, Batches(NUMBERED, context_length=16, batch_size=4, seed=2).next().inputs)


def test_ranks_share_each_global_batch() -> None:
    whole = Batches(NUMBERED, context_length=16, batch_size=6, seed=1)
    ranks = [Batches(NUMBERED, context_length=16, batch_size=2, seed=1, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(30):
        assert torch.equal(whole.next().inputs, torch.cat([rank.next().inputs for rank in ranks]))


def test_the_document_mask_starts_each_token_at_its_end_of_text() -> None:
    split = split_of([5, 6, 7], [8], [9, 10, 11, 12])
    batch = Batches(split, context_length=11, batch_size=1, seed=0, document_mask=True).next()
    assert batch.starts is not None and batch.starts.dtype == torch.int32
    for column, start in enumerate(batch.starts[0].tolist()):
        row = batch.inputs[0].tolist()
        ends = [place for place in range(column + 1) if row[place] == 0]
        assert start == (ends[-1] if ends else 0)


def test_state_of_another_run_is_refused() -> None:
    state = Batches(NUMBERED, context_length=16, batch_size=4, seed=1).state_dict()
    with pytest.raises(CheckpointError, match="seed 1, this run has 2"):
        Batches(NUMBERED, context_length=16, batch_size=4, seed=2).load_state_dict(state)
    with pytest.raises(CheckpointError, match="lacks 'seed'"):
        Batches(NUMBERED, context_length=16, batch_size=4, seed=1).load_state_dict({"handed_out": 1})


def test_a_text_shorter_than_one_context_says_what_fits() -> None:
    split = split_of([1, 2, 3])
    with pytest.raises(DataError, match=r"5 tokens, fewer than one context of 8 .* context length of at most 4"):
        Batches(split, context_length=8, batch_size=2, seed=0)
    assert Batches(split, context_length=4, batch_size=2, seed=0).next().inputs.shape == (2, 4)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="batch size 0"):
        Batches(NUMBERED, context_length=8, batch_size=0, seed=0)
    with pytest.raises(UsageError, match="rank 2"):
        Batches(NUMBERED, context_length=8, batch_size=1, seed=0, rank=2, world_size=2)


def test_validation_predicts_every_token_but_the_first_once() -> None:
    split = split_of([5, 6, 7, 8, 9], [10, 11, 12])
    batches = validation_batches(split, context_length=4, batch_size=2, document_mask=True)
    targets = torch.cat([batch.targets for batch in batches]).flatten()
    assert targets[targets != IGNORED_TARGET].tolist() == [5, 6, 7, 8, 9, 0, 10, 11, 12, 0]
    assert all(int(batch.inputs.min()) >= 0 for batch in batches)
    some = validation_batches(NUMBERED, context_length=10, batch_size=4, max_tokens=200)
    assert sum(len(batch.inputs) for batch in some) == 20
    assert int(some[-1].inputs[-1, 0]) > 900
    assert validation_batches(split_of(), context_length=4, batch_size=1) == []
