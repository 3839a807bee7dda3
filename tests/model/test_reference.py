"""The model agrees with a float64 GPT written from the papers: logits, loss, and the gradient of every parameter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.model import reference
from torch import Tensor

from owngpt.model.attention import CausalContext
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT

NATIVE = GPTConfig(
    vocab_size=23, context_length=12, hidden_size=16, layers=2, heads=4, key_value_heads=2, head_size=4, intermediate_size=24
)
PLAIN = replace(NATIVE, activation="gelu", query_key_norm=False, key_value_heads=4, positions="learned", norm="layernorm")
BIASES = {"query_key_value_bias": True, "attention_output_bias": True, "mlp_bias": True}
CONFIGS = {
    "native": NATIVE,
    "native, odd sizes": replace(NATIVE, hidden_size=15, head_size=6, intermediate_size=17),
    "gpt2": replace(PLAIN, activation="gelu_tanh", norm_epsilon=1e-5, **BIASES),
    "gpt": replace(PLAIN, norm_placement="post", **BIASES),
    "gpt3": replace(PLAIN, attention_windows=(0, 3), **BIASES),
    "gpt-neo, unscaled": replace(PLAIN, attention_windows=(3, 0), attention_scale=1.0, attention_output_bias=True, mlp_bias=True),
    "gpt-j, part of the head rotated": replace(NATIVE, head_size=8, rotary_fraction=0.5, rotary_base=500.0),
    "no positions": replace(NATIVE, positions="none"),
    "untied": replace(NATIVE, tie_embeddings=False),
    "multi-query": replace(NATIVE, key_value_heads=1),
    "multi-head": replace(NATIVE, key_value_heads=4),
    "no qk-norm": replace(NATIVE, query_key_norm=False),
    "qkv bias": replace(NATIVE, query_key_value_bias=True),
    "gated with biases": replace(NATIVE, **BIASES),
    "windows": replace(NATIVE, attention_windows=(1, 4)),
    "layernorm": replace(NATIVE, norm="layernorm"),
    "post-norm rmsnorm": replace(NATIVE, norm_placement="post"),
    "gpt-j": replace(PLAIN, positions="rotary", parallel_residual=True, shared_norm=True, mlp_bias=True, output_head_bias=True),
    "gpt-neox": replace(PLAIN, positions="rotary", parallel_residual=True, **BIASES),
    "head bias, untied": replace(NATIVE, output_head_bias=True, tie_embeddings=False),
    "gemma 3": replace(
        NATIVE,
        norm_placement="sandwich",
        norm_weight_offset=1.0,
        activation="geglu",
        embedding_scale=4.0,
        local_rotary_base=50.0,
        attention_windows=(3, 0),
    ),
    "gpt-oss": replace(
        NATIVE,
        activation="swiglu_clamped",
        experts=4,
        experts_per_token=2,
        query_key_norm=False,
        attention_sinks=True,
        attention_windows=(3, 0),
        **BIASES,
    ),
    "experts without biases": replace(NATIVE, experts=3, experts_per_token=3),
    "sinks, multi-query": replace(NATIVE, attention_sinks=True, key_value_heads=1, attention_scale=0.3),
    **{f"activation {name}": replace(NATIVE, activation=name) for name in ("geglu", "swiglu_clamped", *reference.ACTIVATIONS)},
}


def build(config: GPTConfig, noise: float = 0.3) -> GPT:
    """A model whose every parameter, norms and biases included, is away from its initial value."""
    generator = torch.Generator().manual_seed(7)
    model = GPT(config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
    return model


def example(config: GPTConfig, rows: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    shape = (rows, config.context_length)
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    targets = torch.randint(config.vocab_size, shape, generator=generator)
    targets[0, :4] = -100
    return ids, targets


def doubles(model: GPT) -> dict[str, Tensor]:
    return {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_agree_with_the_reference(config: GPTConfig) -> None:
    model = build(config).eval()
    ids, _ = example(config)
    expected = reference.logits(config, doubles(model), ids)
    torch.testing.assert_close(model.logits(ids).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_loss_and_every_gradient_agree_with_the_reference(config: GPTConfig) -> None:
    model = build(config)
    ids, targets = example(config)
    count = int((targets != -100).sum())
    loss = model.loss(ids, targets, scale=1 / count)
    loss.backward()

    parameters = doubles(model)
    expected = reference.negative_log_likelihood(reference.logits(config, parameters, ids), targets) / count
    expected.backward()

    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        near = 2e-5 * max(1.0, float(parameters[name].grad.abs().max()))
        torch.testing.assert_close(
            parameter.grad.double(), parameters[name].grad, rtol=1e-3, atol=near, msg=f"gradient of {name}"
        )


def test_documents_in_one_row_do_not_see_each_other() -> None:
    config = replace(NATIVE, attention_windows=(0, 3))
    model = build(config)
    ids, targets = example(config)
    starts = torch.tensor([[0] * 5 + [5] * 7, [0] * 2 + [2] * 1 + [3] * 9], dtype=torch.int32)
    parameters = doubles(model)
    expected = reference.logits(config, parameters, ids, starts)
    torch.testing.assert_close(model.logits(ids, CausalContext(starts)).double(), expected, rtol=1e-4, atol=1e-4)

    model.loss(ids, targets, CausalContext(starts)).backward()
    reference.negative_log_likelihood(expected, targets).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), parameters[name].grad, rtol=1e-3, atol=1e-3, msg=name)


WIDE = replace(NATIVE, context_length=45, hidden_size=48, head_size=32, intermediate_size=80)  # heads that fill matrix tiles
BFLOAT16_CONFIGS = {
    "native": WIDE,
    "windows": replace(WIDE, attention_windows=(7, 0)),
    "multi-head, larger heads": replace(WIDE, heads=2, head_size=64),
    "gpt2": replace(PLAIN, context_length=45, head_size=32, activation="gelu_tanh", **BIASES),
    "relu2, small heads": replace(NATIVE, activation="relu2", tie_embeddings=False),
    "layernorm, post-norm": replace(WIDE, norm="layernorm", norm_placement="post"),
    "gpt-j": replace(
        PLAIN,
        context_length=45,
        head_size=32,
        positions="rotary",
        parallel_residual=True,
        shared_norm=True,
        output_head_bias=True,
    ),
    "gemma 3": replace(
        WIDE,
        norm_placement="sandwich",
        norm_weight_offset=1.0,
        activation="geglu",
        embedding_scale=48**0.5,
        local_rotary_base=50.0,
        attention_windows=(7, 0),
    ),
    "sinks and experts": replace(
        WIDE,
        attention_sinks=True,
        attention_windows=(7, 0),
        experts=4,
        experts_per_token=4,
        activation="swiglu_clamped",
        **BIASES,
    ),
}


@pytest.mark.parametrize("config", BFLOAT16_CONFIGS.values(), ids=BFLOAT16_CONFIGS.keys())
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed documents"])
def test_bfloat16_stays_near_the_reference(config: GPTConfig, packed: bool) -> None:
    """Loss, logits and every gradient within the rounding of 8 significant bits; the compiled kernels run here."""
    model = build(config, noise=0.05).bfloat16()
    ids, targets = example(config)
    T = config.context_length
    starts = torch.tensor([[0] * 3 + [3] * (T - 3), [0] * (T - 2) + [T - 2] * 2], dtype=torch.int32) if packed else None
    loss = model.loss(ids, targets, CausalContext(starts))
    loss.backward()

    parameters = doubles(model)
    logits = reference.logits(config, parameters, ids, starts)
    expected = reference.negative_log_likelihood(logits, targets)
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=0.002)
    assert distance(model.logits(ids, CausalContext(starts)), logits) < 0.012
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, parameters[name].grad) < 0.06, name


def distance(actual: Tensor, expected: Tensor) -> float:
    """Length of the difference as a share of the expected length."""
    return float((actual.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_parameter_count_is_the_real_count(config: GPTConfig) -> None:
    assert config.parameter_count() == sum(parameter.numel() for parameter in GPT(config).parameters())


def test_conversion_to_another_dtype_and_back_changes_no_rotation() -> None:
    model = build(NATIVE)
    there_and_back = build(NATIVE).bfloat16().float()
    ids, _ = example(NATIVE)
    tables = [each.rotary.reach(NATIVE.context_length, ids.device) for each in (model, there_and_back)]
    assert all(torch.equal(before, after) and after.dtype == torch.float32 for before, after in zip(*tables, strict=True))


def test_a_later_token_changes_no_earlier_logit() -> None:
    model = build(NATIVE).eval()
    ids, _ = example(NATIVE)
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % NATIVE.vocab_size
    before, after = model.logits(ids), model.logits(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_scoring_does_not_spoil_a_later_training_step() -> None:
    """Tables that the model makes lazily must not be inference tensors, which autograd refuses."""
    model = build(NATIVE)
    ids, targets = example(NATIVE)
    with torch.inference_mode():
        model.logits(ids)
    model.loss(ids, targets).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_dropout_is_for_training_only(placement: str) -> None:
    config = replace(NATIVE, dropout=0.5, norm_placement=placement)
    model = build(config).eval()
    ids, targets = example(config)
    torch.testing.assert_close(model.logits(ids), build(replace(NATIVE, norm_placement=placement)).eval().logits(ids))
    model.train()
    model.dropout.restart(1)
    first, second = model.loss(ids, targets).item(), model.loss(ids, targets).item()
    assert first != second
    model.dropout.restart(1)
    assert model.loss(ids, targets).item() == first
