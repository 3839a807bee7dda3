"""The yardsticks: rates of this machine that later speeds are a share of."""

from __future__ import annotations

import time

import torch

from owngpt.kernels.ceiling import matmul_ceiling, read_bandwidth
from owngpt.kernels.machine import describe_machine


def test_the_matmul_ceiling_agrees_with_a_product_timed_here():
    ceiling = matmul_ceiling(torch.float32, 0.3)
    left = torch.ones(1024, 1024)
    left @ left
    start = time.perf_counter()
    for _ in range(3):
        left @ left
    timed = 3 * 2 * 1024**3 / (time.perf_counter() - start)
    assert 0.2 < timed / ceiling < 5  # a shared machine is noisy; an error of units would be a factor of thousands


def test_read_bandwidth_is_one_of_memory():
    assert 1e8 < read_bandwidth(0.1) < 1e13


def test_the_machine_is_described_in_plain_values():
    machine = describe_machine()
    assert machine.cores >= 1
    assert 0 < machine.memory_available <= machine.memory_total
    assert set(machine.to_dict()) >= {"processor", "cores", "features", "memory_total", "torch", "native_bf16"}
