"""Decoding steps over fixed buffers give the logits of the plain forward pass, or are not used. On a GPU they are CUDA graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.engine.test_torch_runner import CONFIGS, NATIVE, make, tokens

from owngpt.engine import graph_runner
from owngpt.engine.graph_runner import DecodingStep, GraphRunner
from owngpt.engine.layout import Part
from owngpt.engine.torch_runner import BLOCK, TorchRunner
from owngpt.model.config import GPTConfig

LONG = 3 * BLOCK + 10
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]
GRAPHED = {name: config for name, config in CONFIGS.items() if not config.experts}


def written(runner: TorchRunner, ids: torch.Tensor, starts: list[int], steps: int) -> torch.Tensor:
    """Prompts of these lengths, then one token of each text a step. :returns: the steps' logits (steps, R, V)."""
    table = -(-ids.shape[1] // BLOCK)
    blocks = [list(range(1 + row * table, 1 + (row + 1) * table))[::-1] for row in range(len(ids))]
    rows = ids.tolist()
    runner.run([Part(row[:start], 0, own, 0) for row, start, own in zip(rows, starts, blocks, strict=True)])
    found = []
    for step in range(steps):
        places = [start + step for start in starts]
        found.append(runner.run([Part([row[at]], at, own) for row, at, own in zip(rows, places, blocks, strict=True)]).clone())
    return torch.stack(found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", GRAPHED.values(), ids=GRAPHED.keys())
def test_steps_give_the_logits_of_the_plain_forward_pass(config: GPTConfig, device: str) -> None:
    config = replace(config, context_length=LONG)
    model, ids = make(config).to(device), tokens(config, rows=3)
    starts = [1, BLOCK - 2, 2 * BLOCK + 5]
    runner = GraphRunner(model, 1 + 3 * 4)
    with torch.inference_mode():
        found = written(runner, ids, starts, 6)
        truth = model.logits(ids.to(device)).cpu()
    assert list(runner._steps) == [(4, 8)]
    for row, start in enumerate(starts):
        torch.testing.assert_close(found[:, row], truth[row, start : start + 6], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_steps_agree_with_plain_ones(device: str) -> None:
    config = replace(NATIVE, context_length=LONG, initializer_range=0.1)
    model, ids = make(config).bfloat16().to(device), tokens(config, rows=5)
    with torch.inference_mode():
        plain = written(TorchRunner(model, 21), ids, [3, 9, 40, 60, 90], 8)
        graphed = written(GraphRunner(model, 21), ids, [3, 9, 40, 60, 90], 8)
    assert ((graphed - plain).norm(dim=-1) < 0.03 * plain.norm(dim=-1)).all()


def test_batches_and_reaches_have_steps_of_their_own_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_runner, "KEPT_GRAPHS", 2)
    monkeypatch.setattr(graph_runner, "FEWEST_BLOCKS", 1)
    config = replace(NATIVE, context_length=LONG)
    model, ids = make(config), tokens(config)
    runner = GraphRunner(model, 5)
    with torch.inference_mode():
        found = written(runner, ids, [BLOCK - 3], 2 * BLOCK + 4)
        truth = model.logits(ids)[0, BLOCK - 3 :][: len(found)]
    assert list(runner._steps) == [(1, 2), (1, 4)]
    torch.testing.assert_close(found[:, 0], truth, rtol=1e-3, atol=1e-3)


def test_pieces_of_prompts_adapters_and_several_rows_of_logits_are_computed_plainly() -> None:
    model, ids = make(NATIVE), tokens(NATIVE)
    runner = GraphRunner(model, 4)
    logits = runner.run([Part(ids[0, :9].tolist(), 0, [1], 3)])
    torch.testing.assert_close(logits, model.logits(ids[:, :9])[0, 6:], rtol=1e-4, atol=1e-4)
    assert not runner._steps
    experts = make(CONFIGS["sinks and experts"])
    assert not GraphRunner(experts, 4)._usable


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_graph_that_does_not_serve_is_said_once_and_left(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_run = DecodingStep.run

    def run(self: DecodingStep, parts: list[Part]) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return plain_run(self, parts) + 1.0

    monkeypatch.setattr(DecodingStep, "run", run)
    model, ids = make(NATIVE), tokens(NATIVE)
    runner = GraphRunner(model, 4)
    with pytest.warns(RuntimeWarning, match=r"CUDA graphs are off.*(is capturing|their logits are others)$"):
        found = written(runner, ids, [4], 3)
    torch.testing.assert_close(found[:, 0], model.logits(ids)[0, 4:7], rtol=1e-4, atol=1e-4)
