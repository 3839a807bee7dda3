"""The compiled kernels mean what their plain PyTorch forms say: same values and same gradients, within bfloat16's rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from owngpt.kernels import activation, library
from owngpt.kernels.attention import causal_attention
from owngpt.kernels.dropout import Dropout
from owngpt.kernels.linear import linear
from owngpt.kernels.loss import linear_cross_entropy
from owngpt.kernels.norm import add_layer_norm, add_rms_norm
from owngpt.kernels.rotary import HeadLayout, Rotation, split_heads
from owngpt.model.rotary import rotary_tables

needs_kernels = pytest.mark.skipif(library.functions() is None, reason="no kernels could be compiled on this machine")
needs_tiles = pytest.mark.skipif(not library.has_tiles(), reason="this processor has no matrix tiles")
ROUNDING = 2.0**-7
"""A few roundings of bfloat16's eight significant bits, relative to the tensor's norm."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).bfloat16()


def assert_same(operation: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> None:
    """Values and gradients of the compiled operation on bfloat16 against the plain one on the same numbers in float32."""
    compiled, plain = [x.clone().requires_grad_() for x in inputs], [x.float().clone().requires_grad_() for x in inputs]
    got, expected = operation(*compiled), operation(*plain)
    for index, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        assert mine.dtype == inputs[0].dtype, index
        assert distance(mine, theirs) < ROUNDING, index
    weights = [draw(*output.shape, seed=7 + i) for i, output in enumerate(expected)]
    sum((mine.float() * w.float()).sum() for mine, w in zip(got, weights, strict=True)).backward()  # type: ignore[union-attr]
    sum((theirs * w.float()).sum() for theirs, w in zip(expected, weights, strict=True)).backward()  # type: ignore[union-attr]
    for index, (mine, theirs) in enumerate(zip(compiled, plain, strict=True)):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert distance(mine.grad, theirs.grad) < 2 * ROUNDING, f"gradient of input {index}"


def distance(mine: Tensor, theirs: Tensor) -> float:
    """|mine - theirs| / |theirs|; NaN anywhere is infinitely far. Next to nothing counts as equal to nothing."""
    mine, theirs = mine.detach().float(), theirs.detach().float()
    value = float((mine - theirs).norm() / (theirs.norm() + 1e-3))
    return value if value == value else float("inf")


@needs_kernels
@pytest.mark.parametrize("width", [32, 160, 1000])
@pytest.mark.parametrize("dropout", [None, Dropout(0.25, 12345)])
def test_sum_and_rms_norm(width: int, dropout: Dropout | None) -> None:
    weight = torch.rand(width) + 0.5
    assert_same(lambda x, update: add_rms_norm(x, update, weight, 1e-6, dropout), draw(3, 7, width), draw(3, 7, width, seed=1))


@needs_kernels
def test_rms_norm_without_an_update_passes_the_stream_on() -> None:
    weight = torch.rand(64) + 0.5
    assert_same(lambda x: add_rms_norm(x, None, weight, 1e-6), draw(2, 5, 64))


@needs_kernels
def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    ones = torch.ones(200, 512, dtype=torch.bfloat16)
    summed, _ = add_rms_norm(torch.zeros_like(ones), ones, torch.ones(512), 1e-6, Dropout(0.25, 99))
    assert abs(float((summed == 0).float().mean()) - 0.25) < 0.01
    assert abs(float(summed.float().mean()) - 1.0) < 0.01


@needs_kernels
@pytest.mark.parametrize(("heads", "groups", "size", "rotated"), [(4, 4, 32, 32), (6, 2, 64, 64), (3, 1, 80, 40), (2, 2, 64, 0)])
@pytest.mark.parametrize("norm", [True, False])
def test_split_norm_and_rotate(heads: int, groups: int, size: int, rotated: int, norm: bool) -> None:
    batch, time = 2, 13
    cosines, sines = rotary_tables(40, rotated, 10000.0)
    rotation = Rotation(cosines, sines, torch.randint(0, 40, (batch * time,), dtype=torch.int32))
    query_weight, key_weight = (torch.rand(size) + 0.5, torch.rand(size) + 0.5) if norm else (None, None)
    layout = HeadLayout(heads, groups, size)
    assert_same(lambda x: split_heads(x, layout, rotation, query_weight, key_weight, 1e-6), draw(batch, time, layout.width))


@needs_tiles
@pytest.mark.parametrize("time", [1, 31, 64, 100, 200])
@pytest.mark.parametrize(("heads", "groups", "size"), [(4, 4, 32), (6, 2, 64), (2, 1, 128)])
def test_attention_at_any_length(time: int, heads: int, groups: int, size: int) -> None:
    inputs = (draw(2, time, heads, size), draw(2, time, groups, size, seed=1), draw(2, time, groups, size, seed=2))
    assert_same(lambda q, k, v: (causal_attention(q, k, v, starts=None, window=0, scale=size**-0.5),), *inputs)


@needs_tiles
@pytest.mark.parametrize("time", [1, 63, 91, 96, 130, 257])
@pytest.mark.parametrize(("heads", "groups", "window"), [(3, 1, 0), (9, 3, 0), (3, 3, 0), (9, 3, 70)])
def test_attention_of_an_odd_number_of_heads(time: int, heads: int, groups: int, window: int) -> None:
    """The last head is cut in two, so that two threads have the same to do."""
    inputs = (draw(1, time, heads, 32), draw(1, time, groups, 32, seed=1), draw(1, time, groups, 32, seed=2))
    assert_same(lambda q, k, v: (causal_attention(q, k, v, starts=None, window=window, scale=0.2),), *inputs)


@needs_tiles
@pytest.mark.parametrize("window", [0, 2, 17, 64])
@pytest.mark.parametrize("documents", [True, False])
def test_attention_in_windows_and_documents(window: int, documents: bool) -> None:
    time = 150
    begins = torch.zeros(2, time, dtype=torch.int32)
    if documents:
        for row, cuts in enumerate(((3, 70, 71, 140), (40, 96))):
            for cut in cuts:
                begins[row, cut:] = cut
    inputs = (draw(2, time, 4, 32), draw(2, time, 2, 32, seed=1), draw(2, time, 2, 32, seed=2))
    assert_same(
        lambda q, k, v: (causal_attention(q, k, v, starts=begins if documents else None, window=window, scale=0.2),), *inputs
    )


@needs_tiles
def test_attention_of_many_sequences_is_that_of_each() -> None:
    """Few are dealt out to the threads head by head, many group by group."""
    shapes = (8, 70, 6, 32), (8, 70, 2, 32), (8, 70, 2, 32)
    together = [draw(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    d_out = draw(8, 70, 6 * 32, seed=3)
    causal_attention(*together, starts=None, window=0, scale=0.2).backward(d_out)
    for row in range(8):
        alone = [each.detach()[row : row + 1].clone().requires_grad_() for each in together]
        causal_attention(*alone, starts=None, window=0, scale=0.2).backward(d_out[row : row + 1])
        for found, expected in zip(alone, together, strict=True):
            assert found.grad is not None
            assert expected.grad is not None
            torch.testing.assert_close(found.grad[0], expected.grad[row], atol=0.02, rtol=0.02)


@needs_tiles
def test_attention_survives_extreme_scores() -> None:
    query, key = 60 * draw(1, 70, 2, 32), 60 * draw(1, 70, 2, 32, seed=1)
    out = causal_attention(query, key, draw(1, 70, 2, 32, seed=2), starts=None, window=0, scale=1.0)
    assert torch.isfinite(out.float()).all()


@needs_kernels
def test_gated_activation() -> None:
    assert_same(lambda x: (activation.gated(x, "swiglu"),), 4 * draw(5, 9, 96))


@needs_kernels
@pytest.mark.parametrize("kind", ["gelu_tanh", "relu2"])
def test_plain_activations(kind: str) -> None:
    assert_same(lambda x: (activation.plain(x, kind),), 4 * draw(5, 9, 33))


@needs_kernels
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(64, 96, 32), (64, 32, 96), (50, 40, 70)])
def test_linear(rows: int, inputs: int, outputs: int) -> None:
    bias = draw(outputs, seed=3).float()
    assert_same(lambda x, w: (linear(x, w, bias.to(x.dtype)),), draw(2, rows, inputs), draw(outputs, inputs, seed=1))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cross_entropy_in_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("owngpt.kernels.loss.BLOCK_VALUES", 96 * 10)
    hidden, weight = draw(37, 32).to(dtype).requires_grad_(), draw(96, 32, seed=1).to(dtype).requires_grad_()
    targets = torch.randint(0, 96, (37,), generator=torch.Generator().manual_seed(5))
    targets[::5] = -100
    loss = linear_cross_entropy(hidden, weight, targets, scale=0.5)
    loss.backward()
    wide, matrix = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = 0.5 * torch.nn.functional.cross_entropy(wide @ matrix.t(), targets, reduction="sum")
    expected.backward()
    tolerance = ROUNDING if dtype == torch.bfloat16 else 1e-5
    assert abs(loss.item() - expected.item()) < tolerance * expected.item()
    for mine, theirs in ((hidden.grad, wide.grad), (weight.grad, matrix.grad)):
        assert mine is not None
        assert theirs is not None
        assert distance(mine, theirs) < tolerance


@needs_kernels
def test_updates_equal_their_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    from owngpt.train import updates

    def run() -> list[Tensor]:
        state = [torch.linspace(-1, 1, 100), torch.linspace(0, 1, 100), torch.linspace(0.1, 1, 100)]
        working, direction, gradient = torch.zeros(100).bfloat16(), torch.zeros(100).bfloat16(), draw(100)
        updates.adamw_update(
            *state, gradient, working, gradient_scale=0.5, rate=0.1, betas=(0.9, 0.95), epsilon=1e-8, decay=0.1, step=3
        )
        updates.nesterov_direction(state[1], gradient, direction, gradient_scale=0.5, beta=0.95)
        updates.apply_direction(state[0], direction, working, rate=0.1, decay_rate=0.01)
        return [*state, working, direction]

    compiled = run()
    monkeypatch.setattr(updates, "_fused", lambda *tensors: False)
    for mine, theirs in zip(compiled, run(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2 if mine.dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("with_update", [True, False])
def test_sum_and_layer_norm(with_update: bool) -> None:
    weight, bias = torch.rand(96) + 0.5, torch.rand(96)
    if with_update:
        assert_same(lambda x, update: add_layer_norm(x, update, weight, bias, 1e-5), draw(3, 7, 96), draw(3, 7, 96, seed=1))
    else:
        assert_same(lambda x: add_layer_norm(x, None, weight, bias, 1e-5), draw(3, 7, 96))


@needs_tiles
def test_plain_split_gives_back_attention_s_own_buffer() -> None:
    rotation = Rotation(torch.empty(40, 0), torch.empty(40, 0), torch.zeros(26, dtype=torch.int32))
    layout = HeadLayout(4, 2, 32)

    def attend(projected: Tensor) -> tuple[Tensor, ...]:
        query, key, value = split_heads(projected, layout, rotation, None, None, 1e-6)
        return (causal_attention(query, key, value, starts=None, window=0, scale=0.2),)

    assert_same(attend, draw(2, 13, layout.width))
