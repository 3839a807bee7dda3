"""Of a prompt's tokens the last layer computes keys and values, and the rest of it only where a hidden state is read."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from owngpt.engine.layout import Part
from owngpt.engine.packing import pack_model, recordable
from owngpt.engine.runner import PackedRunner, Runner
from owngpt.engine.torch_runner import TorchRunner
from owngpt.formats.peft import LowRankUpdate
from owngpt.kernels.packed import amx
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT

VOCABULARY = 97
SHAPES: dict[str, dict[str, object]] = {
    "native": {},
    "two layers, the last with a window": {"attention_windows": (0, 20)},
    "one layer": {"layers": 1},
    "norms of queries and keys": {"query_key_norm": True},
    "post-norm": {"norm_placement": "post", "positions": "learned"},
    "sandwich": {"norm_placement": "sandwich"},
    "parallel": {"parallel_residual": True},
    "parallel with one norm": {"parallel_residual": True, "shared_norm": True, "norm": "layernorm"},
    "sinks": {"attention_sinks": True},
    "not turned": {"positions": "learned", "activation": "gelu"},
}
RUNNERS: dict[str, Callable[[GPT], Runner]] = {
    "torch": lambda model: TorchRunner(model, 24),
    **{kind: lambda model, kind=kind: PackedRunner(pack_model(model, kind), 24) for kind in ("bf16", "int8")},  # type: ignore[misc]
}


def model_of(changes: dict[str, object]) -> GPT:
    plain: dict[str, object] = {
        "vocab_size": VOCABULARY, "context_length": 128, "hidden_size": 64, "layers": 2, "heads": 4, "key_value_heads": 2,
        "head_size": 32, "intermediate_size": 96, "initializer_range": 0.2,
    }  # fmt: skip
    model = GPT(GPTConfig(**{**plain, **changes}), generator=torch.Generator().manual_seed(1)).eval()  # type: ignore[arg-type]
    if model.config.attention_sinks:
        for block in model.blocks:
            block.attention.sinks.data = torch.linspace(-1, 1, 4)
    return model


def runner_of(name: str, changes: dict[str, object]) -> Runner:
    model = model_of(changes)
    hindrance = recordable(model)
    if name != "torch" and hindrance is not None:
        pytest.skip(hindrance)
    return RUNNERS[name](model)


def rows_of(runner: TorchRunner | PackedRunner) -> list[int]:
    """How many tokens the feed-forward layer of each block computes from now on, a list that grows."""
    rows: list[int] = []

    def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
        rows.append(inputs[0].shape[1])

    for block in runner.model.blocks:
        block.mlp.register_forward_pre_hook(note)
    return rows


def texts(*lengths: int) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def parts_of(ids: list[list[int]], wanted: list[int], before: int = 0) -> list[Part]:
    return [
        Part(row[before:], before, range(1 + 4 * index, 5 + 4 * index), count)
        for index, (row, count) in enumerate(zip(ids, wanted, strict=True))
    ]


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", RUNNERS)
def test_what_is_read_is_the_same_as_if_all_were(name: str, changes: dict[str, object]) -> None:
    ids, wanted = texts(70, 1, 33, 9, 40), [1, 1, 3, 1, 0]
    expected = runner_of(name, changes).run(parts_of(ids, [len(row) for row in ids]))
    ends = torch.tensor([len(row) for row in ids]).cumsum(0)
    expected = torch.cat([expected[end - count : end] for end, count in zip(ends, wanted, strict=True)]).clone()
    runner = runner_of(name, changes)
    actual = runner.run(parts_of(ids, wanted)).clone()
    tolerance = 1e-4 if name == "torch" else 0.1 * float(expected.std())  # sums of bfloat16 in another order
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
    # Keys and values are all there: the next token of each text sees them.
    longer = parts_of([[*row, 5] for row in ids], [len(row) + 1 for row in ids])
    whole = runner_of(name, changes).run(longer)
    last = torch.tensor([len(part.token_ids) for part in longer]).cumsum(0) - 1
    again = [runner.run([Part([5], len(part.token_ids) - 1, part.blocks)])[0].clone() for part in longer]
    torch.testing.assert_close(torch.stack(again), whole[last], rtol=0, atol=tolerance)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", RUNNERS)
def test_pieces_and_other_wishes_find_nothing_of_earlier_calls(name: str, changes: dict[str, object]) -> None:
    """One recorded shape after another, each again with fewer and other tokens wanted, after tokens that are there already."""
    ids = texts(40, 60, 25)
    whole = runner_of(name, changes).run(parts_of(ids, [len(row) for row in ids])).clone()
    ends = torch.tensor([len(row) for row in ids]).cumsum(0)
    runner = runner_of(name, changes)
    for wanted in ([3, 2, 1], [1, 1, 0], [0, 1, 2], [0, 0, 1]):
        runner.run(parts_of([row[:9] for row in ids], [1, 1, 1]))
        found = runner.run(parts_of(ids, wanted, before=9)).clone()
        expected = torch.cat([whole[end - count : end] for end, count in zip(ends, wanted, strict=True)])
        tolerance = 1e-4 if name == "torch" else 0.1 * float(whole.std())
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in RUNNERS if name != "torch"])
def test_a_text_is_the_same_bits_whatever_is_wanted_of_it_and_of_others(name: str) -> None:
    if name != "bf16" and amx():
        pytest.skip("with AMX the number of rows decides how quantized weights are multiplied")
    runner, ids = runner_of(name, {}), texts(49, 63)
    alone = runner.run(parts_of(ids[:1], [49])).clone()
    for own, other in ((49, 63), (49, 62), (49, 1), (49, 0), (48, 63), (48, 1), (1, 1)):
        found = runner.run(parts_of(ids, [own, other]))
        assert torch.equal(found[:own], alone[49 - own :])


@pytest.mark.parametrize("name", RUNNERS)
def test_the_last_layer_computes_no_more_than_is_read(name: str) -> None:
    runner = runner_of(name, {"layers": 3})
    assert isinstance(runner, TorchRunner | PackedRunner)
    rows = rows_of(runner)
    runner.run(parts_of(texts(48, 16), [0, 2]))
    assert rows == [64, 64, 2]
    rows.clear()
    runner.run(parts_of(texts(64), [0]))  # a piece of a prompt: nothing is read, and one token does for the shape
    assert rows == [64, 64, 1]
    rows.clear()
    runner.run(parts_of(texts(64, 16), [64, 16]))
    assert rows == [80, 80, 80]


@pytest.mark.parametrize("name", RUNNERS)
def test_tokens_with_an_adapter_are_computed_whole(name: str) -> None:
    """Its rows lie side by side among all tokens, not among those that are read."""
    generator = torch.Generator().manual_seed(3)
    update = LowRankUpdate(torch.randn(4, 96, generator=generator), torch.randn(64, 4, generator=generator))
    ids = texts(20, 40)
    found = []
    for wanted in ([len(row) for row in ids], [1, 1]):
        runner = runner_of(name, {})
        runner.load_adapter("own", {"blocks.1.mlp.down": update})
        parts = parts_of(ids, wanted)
        logits = runner.run([parts[0], parts[1]._replace(adapter="own")]).clone()
        found.append(logits[[19, 59]] if len(logits) > 2 else logits)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.03 * float(found[0].std()))
    plain = runner_of(name, {}).run(parts_of(ids, [1, 1]))
    assert float((plain - found[1])[1].abs().max()) > 0.1
