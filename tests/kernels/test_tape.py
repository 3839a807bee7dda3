"""A tape refuses what it could not repeat, and its memory is used again only when nobody refers to it."""

from __future__ import annotations

import pytest
import torch

from owngpt.kernels import packed
from owngpt.kernels.tape import BufferPool, NotRecordableError, Tape, can_record, recording


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + 1,
        lambda x: x.add_(1),
        lambda x: x.float(),
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: torch.nn.functional.silu(x),
        lambda x: torch.cat((x, x)),
        lambda x: x.t().reshape(-1),
        lambda x: bool(x[0, 0]),
        lambda x: x.__setitem__(0, 1.0),
        lambda x: torch.zeros(3),
        lambda x: x @ x.t(),
    ],
)
def test_arithmetic_is_refused_while_recording(work: object) -> None:
    tape = Tape(BufferPool())
    with pytest.raises(NotRecordableError), tape.record():
        work(tape.empty(4, 8))  # type: ignore[operator]
    assert recording() is None


def test_views_and_shapes_are_allowed_while_recording() -> None:
    tape = Tape(BufferPool())
    with tape.record():
        x = tape.empty(2, 3, 8)
        parts = x.view(6, 8).split([4, 2], dim=1) if x.shape[0] == 3 else x.transpose(0, 1).unsqueeze(0)[..., :4].chunk(2, dim=-1)
        assert parts[0].data_ptr() == x.data_ptr()
        assert x.numel() == 48
        assert x.flatten(0, 1).stride() == (8, 1)


def test_a_second_tape_cannot_begin_inside_of_one() -> None:
    with Tape(BufferPool()).record(), pytest.raises(AssertionError):
        Tape(BufferPool()).record().__enter__()


def test_memory_is_used_again_once_nothing_refers_to_it_and_never_before() -> None:
    pool = BufferPool()
    first = pool.empty((64, 64), torch.bfloat16)
    address, view = first.data_ptr(), first.view(-1)[:10]
    second = pool.empty((64, 64), torch.bfloat16)
    assert second.data_ptr() != address
    del first
    assert pool.empty((64, 64), torch.bfloat16).data_ptr() not in (address, second.data_ptr())  # the view still refers to it
    del view
    assert pool.empty((64, 64), torch.bfloat16).data_ptr() == address
    assert address % 64 == 0


@pytest.mark.skipif(not can_record(), reason="no matrix tiles on this machine")
def test_a_tape_runs_again_with_what_its_inputs_hold_then() -> None:
    weight = packed.pack(torch.randn(32, 64, generator=torch.Generator().manual_seed(0)), "bf16")
    x = torch.zeros(3, 64, dtype=torch.bfloat16)
    for threads in (1, 2, 3):
        tape = Tape(BufferPool(threads))
        with tape.record():
            out = packed.linear(x, weight, None, torch.float32)
        for seed in range(3):
            x.copy_(torch.randn(3, 64, generator=torch.Generator().manual_seed(seed)))
            tape.run()
            assert torch.allclose(out, x.float() @ weight.unpacked().T, atol=1e-3)


@pytest.mark.skipif(not can_record(), reason="no matrix tiles on this machine")
def test_tapes_of_several_threads_run_at_the_same_time() -> None:
    from concurrent.futures import ThreadPoolExecutor

    weight = packed.pack(torch.randn(96, 64, generator=torch.Generator().manual_seed(0)), "bf16")

    def work(seed: int) -> bool:
        x = torch.randn(20, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()
        tape = Tape(BufferPool(2))
        with tape.record():
            out = packed.linear(x, weight, None, torch.float32)
        for _ in range(20):
            tape.run()
        return torch.allclose(out, x.float() @ weight.unpacked().T, atol=1e-3)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
