"""Memory that is lent, comes back with the last tensor over it, and is lent again."""

from __future__ import annotations

import gc
import random
import threading

import pytest
import torch
from torch import Tensor

from owngpt.kernels import pool
from owngpt.kernels.memory import LINE
from owngpt.kernels.pool import LARGER, SLACK, SMALLEST, Pool, size_class

MB = 1024 * 1024


def tensor(lender: Pool, count: int) -> Tensor:
    return torch.frombuffer(lender.take(count), dtype=torch.uint8, count=count)


def test_a_block_returns_with_the_last_view_and_is_lent_again():
    lender = Pool()
    first = tensor(lender, MB)
    place, part = first.data_ptr(), first[5:10]
    del first
    assert tensor(lender, MB).data_ptr() != place  # a view still lies there
    del part
    held = lender.held
    assert place in {each.data_ptr() for each in [tensor(lender, MB), tensor(lender, MB)]}
    assert lender.held == held


def test_what_is_lent_is_nobody_else_s():
    """Random lives of many tensors: each keeps what was written to it, and all come back."""
    lender, chance = Pool(), random.Random(5)
    living: list[tuple[Tensor, int]] = []
    for number in range(600):
        if living and chance.random() < 0.45:
            living.pop(chance.randrange(len(living)))
        elif len(living) < 40:
            living.append((tensor(lender, chance.choice([70_000, 300_000, MB, MB + 3])).fill_(number % 251), number % 251))
        assert all(int(each[0]) == int(each[-1]) == value for each, value in chance.sample(living, min(3, len(living))))
    assert all(bool((each == value).all()) for each, value in living)
    assert lender.lent == sum(size_class(each.numel()) for each, _ in living)
    living.clear()
    assert lender.lent == 0


def test_what_is_held_is_bounded_by_what_was_lent_at_once():
    """Lengths that never come back would otherwise leave a block each."""
    lender = Pool()
    for count in range(SMALLEST, 40 * SMALLEST, 977):
        kept = [tensor(lender, count), tensor(lender, 2 * count)]
        assert lender.held <= 1.5 * lender.most_lent
        del kept
    assert lender.most_lent <= 3.4 * 40 * SMALLEST


def test_a_larger_block_rather_than_a_new_one_where_there_is_enough():
    lender = Pool()
    del (large := [tensor(lender, MB) for _ in range(4)])[:]
    held = lender.held
    half = [tensor(lender, int(MB / LARGER)) for _ in range(4)]
    assert lender.held <= SLACK * held and lender.lent <= 4 * MB
    assert not large and len({each.data_ptr() for each in half}) == 4


def test_blocks_are_given_up_for_a_size_that_none_of_them_has():
    lender = Pool()
    for _ in range(3):
        small = [tensor(lender, SMALLEST) for _ in range(64)]
        del small
        tensor(lender, 64 * SMALLEST)
    assert lender.held <= SLACK * lender.most_lent == SLACK * 64 * SMALLEST


def test_released_is_what_nobody_has():
    lender = Pool()
    kept = tensor(lender, MB).fill_(7)
    del (free := [tensor(lender, 3 * MB) for _ in range(3)])[:]
    assert not free and lender.held == 10 * MB
    lender.release()
    assert lender.held == lender.most_lent == lender.lent == MB and bool((kept == 7).all())
    del kept
    assert lender.lent == lender.held == 0


def test_without_memory_nothing_is_counted_as_lent():
    lender = Pool()
    with pytest.raises(MemoryError, match="take fewer or shorter rows"):
        lender.take(1 << 50)
    assert lender.held == lender.lent == 0


@pytest.mark.parametrize("count", [SMALLEST, SMALLEST + 1, 100_000, 589_824, 3 * MB, 7 * MB + 1, 2**33 + 5])
def test_a_block_is_an_eighth_larger_at_most(count: int):
    assert count <= size_class(count) <= count * 9 / 8
    assert size_class(size_class(count)) == size_class(count)


def test_tensors_begin_at_cache_lines_and_not_all_at_the_same_of_a_page():
    lender = Pool()
    places = [tensor(lender, SMALLEST).data_ptr() for _ in range(8)]
    kept = [tensor(lender, SMALLEST) for _ in range(16)]
    assert all(place % LINE == 0 for place in places)
    assert len({each.data_ptr() % 4096 for each in kept}) == 16


def test_several_threads_take_and_give_back():
    lender, wrong = Pool(), []

    def work(number: int):
        for _ in range(300):
            one, other = tensor(lender, SMALLEST).fill_(number), tensor(lender, 2 * SMALLEST).fill_(number + 100)
            if int(one.max()) != number or int(other.min()) != number + 100:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong and lender.lent == 0


def test_shapes_types_and_small_tensors():
    wide = pool.empty((3, 1024, 64), torch.bfloat16)
    assert wide.shape == (3, 1024, 64) and wide.dtype == torch.bfloat16 and wide.is_contiguous()
    assert pool.empty_like(wide).shape == wide.shape and pool.empty((2, 3)).dtype == torch.float32
    assert pool.empty((0, 5)).numel() == 0
    assert wide._base is None and pool.empty((2, 3))._base is None
    assert pool.empty((1 << 20,), device=torch.device("meta")).device.type == "meta"
    kept = wide.fill_(2.0).requires_grad_()
    (kept * 3).sum().backward()
    assert kept.grad is not None and float(kept.grad[2, 5, 7]) == 3.0
