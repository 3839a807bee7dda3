"""Several processes that train one model together, each on its share of every batch (data parallel).

``torchrun --nproc-per-node N -m owngpt train …`` starts them and sets RANK, WORLD_SIZE and LOCAL_RANK. Rank 0 leads: it
alone prepares the text, decides what is due (which depends on the clock, and so must be decided once), writes and
prints; it tells the others what to do next. The others follow. All hold the same weights: they start from rank 0's, and
each update is computed from the same sums. Sums are plain (gloo knows no others); loss and gradients are divided by the
number of targets on all ranks before, never averaged afterwards.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from enum import IntEnum
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import Tensor

from owngpt.data.batches import BatchStream
from owngpt.errors import OwnGPTError, ParallelError, UsageError
from owngpt.train.interrupts import TrainingInterrupted
from owngpt.train.step import TrainModule

PATIENCE = timedelta(hours=24)
"""How long a rank waits for the others: preparing a large text takes rank 0 that long at most."""
BUCKET_VALUES = 16 * 2**20
"""Gradient values that are added up in one go; bounds the float32 copy."""


class Order(IntEnum):
    """What rank 0 tells the others to do."""

    END = 0
    READY = 1
    """The text is prepared; open it. A path follows."""
    STATE = 2
    """Take over rank 0's weights and moments; the position in the text is given."""
    STEP = 3
    """Train on the next batches; rate scale and limits are given."""


class Ranks:
    """This process among those of its run; for a :class:`~owngpt.train.step.TrainModule` the reducer."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._has_ended = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Ranks | None:
        """Joins the other ranks as torchrun describes them; None where this process is alone.

        :raises UsageError: the variables are incomplete, or there are more ranks than GPUs on a machine with GPUs.
        :raises ParallelError: the others cannot be reached.
        """
        variables = os.environ if environment is None else environment
        size = _whole_number(variables, "WORLD_SIZE", 1)
        if size == 1:
            return None
        rank, local = _whole_number(variables, "RANK"), _whole_number(variables, "LOCAL_RANK")
        device = torch.device("cpu")
        if torch.cuda.is_available():
            if local >= torch.cuda.device_count():
                raise UsageError(
                    f"rank {local} of this machine has no GPU: there are {torch.cuda.device_count()}; start that many"
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        with _others():
            # Numbers and orders go through gloo on every machine: waiting for them costs no GPU time.
            backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
            distributed.init_process_group(backend, rank=rank, world_size=size, timeout=PATIENCE)
        return cls(rank, size, device)

    @property
    def leads(self) -> bool:
        """Whether this is the rank that decides, writes and prints."""
        return self.rank == 0

    # --- sums ---

    def sum_number(self, value: float) -> float:
        """The sum of one number over ranks."""
        total = torch.tensor(value, dtype=torch.float64)
        with _others():
            distributed.all_reduce(total)
        return float(total)

    @torch.no_grad()
    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replaces each gradient by its sum over ranks, added up in float32."""
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1).float() for gradient in bucket])
            with _others():
                distributed.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    # --- rank 0 ---

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Tells the others to end when the block does; left in the middle of a step, they notice by themselves."""
        try:
            yield
        except (OwnGPTError, TrainingInterrupted):
            with suppress(ParallelError):
                self.end()
            raise
        else:
            self.end()

    def announce_ready(self, folder: Path) -> None:
        """Text, tokenizer and plan lie in ``folder``."""
        name = torch.tensor(list(os.fsencode(folder)), dtype=torch.uint8)
        self._tell(Order.READY, len(name))
        with _others():
            distributed.broadcast(name, 0)

    def share_state(self, module: TrainModule, batches: BatchStream) -> None:
        """Gives the others the weights, moments and position in the text that rank 0 has."""
        self._tell(Order.STATE, batches.state_dict()["handed_out"])
        self._send_state(module)

    def announce_step(self, rate_scale: float, loss_limit: float, norm_limit: float) -> None:
        """The next call on every rank is :meth:`TrainModule.run` with these numbers."""
        self._tell(Order.STEP, rate_scale, loss_limit, norm_limit)

    def end(self) -> None:
        """Nothing more is to be done; once."""
        if not self._has_ended:
            self._has_ended = True
            self._tell(Order.END)

    # --- the others ---

    def wait_until_ready(self) -> Path | None:
        """The folder in which everything is prepared; None when rank 0 ended before that (and has said why)."""
        order, numbers = self._hear()
        if order is Order.END:
            return None
        assert order is Order.READY
        name = torch.empty(int(numbers[0]), dtype=torch.uint8)
        with _others():
            distributed.broadcast(name, 0)
        return Path(os.fsdecode(bytes(name.tolist())))

    def follow(self, module: TrainModule, batches: BatchStream, *, accumulation: int) -> None:
        """Does what rank 0 says until it says that it is over.

        :raises ParallelError: rank 0 is gone.
        """
        with _deaf():
            while True:
                order, numbers = self._hear()
                if order is Order.END:
                    return
                if order is Order.STATE:
                    self._send_state(module)
                    batches.load_state_dict({**batches.state_dict(), "handed_out": int(numbers[0])})
                else:
                    assert order is Order.STEP
                    scale, loss_limit, norm_limit = numbers
                    share = [batches.next() for _ in range(accumulation)]
                    module.run(share, scale, loss_limit=loss_limit, norm_limit=norm_limit)

    def leave(self) -> None:
        """Gives back what the connection holds."""
        distributed.destroy_process_group()

    # --- orders ---

    def _tell(self, order: Order, *numbers: float) -> None:
        message = torch.zeros(4, dtype=torch.float64)
        message[: 1 + len(numbers)] = torch.tensor([float(order), *numbers], dtype=torch.float64)
        with _others():
            distributed.broadcast(message, 0)

    def _hear(self) -> tuple[Order, list[float]]:
        message = torch.zeros(4, dtype=torch.float64)
        with _others():
            distributed.broadcast(message, 0)
        order, *numbers = message.tolist()
        return Order(int(order)), numbers

    @torch.no_grad()
    def _send_state(self, module: TrainModule) -> None:
        """Every tensor of the module from rank 0 to the others, who take them over."""
        state = module.state_dict()
        with _others():
            for name in sorted(state):
                value = state[name].to(self.device)
                distributed.broadcast(value, 0)
                state[name] = value
        if not self.leads:
            module.load_state_dict(state)


def _whole_number(variables: Mapping[str, str], name: str, missing: int | None = None) -> int:
    value = variables.get(name, "" if missing is None else str(missing))
    if not value.isdecimal():
        raise UsageError(f"the environment variable {name} is {value!r}, not a number; start several ranks with torchrun")
    return int(value)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of together at most :data:`BUCKET_VALUES` values; a larger gradient is a bucket of its own."""
    bucket: list[Tensor] = []
    held = 0
    for gradient in gradients:
        if bucket and held + gradient.numel() > BUCKET_VALUES:
            yield bucket
            bucket, held = [], 0
        bucket.append(gradient)
        held += gradient.numel()
    if bucket:
        yield bucket


@contextmanager
def _others() -> Iterator[None]:
    """A failure to talk to the other ranks becomes one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise ParallelError(
            "another rank of this run has ended or cannot be reached; see its message, then go on from the last checkpoint "
            f"with --resume ({' '.join(str(error).split())[:200]})"
        ) from error


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C and SIGTERM reach every rank of a run; rank 0 saves and then ends the others."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
