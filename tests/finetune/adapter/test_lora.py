"""LoRA trains what PEFT would train, saves what PEFT opens, and leaves the base alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from owngpt.errors import UsageError
from owngpt.families import family_named
from owngpt.finetune.adapter.lora import Lora, LoraSettings, attach
from owngpt.finetune.adapter.low_rank import LowRankLinear, plain_linear
from owngpt.formats.folder import load_config, load_weights
from owngpt.formats.merging import merge_adapter
from owngpt.formats.peft import load_adapter
from owngpt.kernels.activation import gated
from owngpt.kernels.frozen import can_freeze
from owngpt.model.gpt import GPT

LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CLASSIC = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
BASES: dict[str, Any] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**CLASSIC)),
    "gptj": lambda: transformers.GPTJForCausalLM(transformers.GPTJConfig(**CLASSIC, rotary_dim=4)),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**{**LLAMA, "num_key_value_heads": None}, rotary_pct=0.5)
    ),
}
TOKENS = torch.arange(40).view(2, 20)


def opened(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32) -> GPT:
    """Our model of a base that transformers wrote into ``folder/base``."""
    if not (folder / "base").exists():
        torch.manual_seed(0)
        BASES[name]().save_pretrained(folder / "base")
    config = load_config(folder / "base")
    return load_weights(folder / "base", config, dtype=dtype)


def attached(model: GPT, name: str = "llama", **settings: Any) -> Lora:
    return attach(model, LoraSettings(**{"rank": 4, "alpha": 12, **settings}), family_named(name), seed=1)


def shaken(lora: Lora) -> Lora:
    """As after some training: nothing is zero any more."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return lora


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {}),
        ("llama", {"targets": ("q_proj", "v_proj", "up_proj")}),
        ("llama", {"rslora": True}),
        ("llama", {"dora": True}),
        ("llama", {"dora": True, "targets": ("k_proj", "down_proj")}),
        ("llama", {"targets": ("layers.1.mlp.gate_proj", "o_proj")}),
        ("qwen2", {"dora": True}),
        ("gpt2", {}),
        ("gpt2", {"dora": True, "targets": ("c_attn",)}),
        ("gptj", {}),
        ("gpt_neox", {"dora": True}),
    ],
)
def test_saved_adapter_has_the_same_logits_in_peft(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft", reason="PEFT opens what we wrote")
    model = opened(tmp_path, name)
    lora = shaken(attached(model, name, **settings))
    lora.save(tmp_path / "adapter", base=str(tmp_path / "base"))
    with torch.no_grad():
        ours = model.logits(TOKENS)
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(ours, theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)
        assert (
            float((ours - transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")(TOKENS).logits).abs().max()) > 0.01
        )
        plain = opened(tmp_path, name)
        merge_adapter(plain, load_adapter(tmp_path / "adapter", plain.config))
        torch.testing.assert_close(plain.logits(TOKENS), ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"rslora": True, "targets": ("q_proj", "v_proj", "down_proj")}])
def test_gradients_are_those_of_peft(tmp_path: Path, settings: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft", reason="PEFT computes the expected gradients")
    model = opened(tmp_path)
    lora = shaken(attached(model, **settings))
    lora.save(tmp_path / "adapter", base="base")
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter", is_trainable=True
    )
    theirs(TOKENS, labels=TOKENS).loss.backward()
    model.loss(TOKENS[:, :-1], TOKENS[:, 1:], scale=1 / 38).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    with torch.no_grad():  # gradients have the layout of what they belong to
        for parameter in lora.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    lora.save(tmp_path / "gradients", base="base")
    found = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    assert len(found) == len(expected)
    for name, gradient in found.items():
        theirs_name = name.replace(".weight", ".default.weight") if "magnitude" not in name else f"{name}.default.weight"
        torch.testing.assert_close(gradient, expected[theirs_name], atol=1e-5, rtol=1e-4)


def test_a_fresh_adapter_changes_nothing_and_the_base_has_no_gradients(tmp_path: Path) -> None:
    plain, model = opened(tmp_path), opened(tmp_path)
    lora = attached(model, dora=True)
    torch.testing.assert_close(model.logits(TOKENS), plain.logits(TOKENS), atol=1e-5, rtol=1e-5)
    model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    names = {name for name, _ in lora.named_parameters()}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == names
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == names


def test_switched_off_it_is_the_base_exactly(tmp_path: Path) -> None:
    model = opened(tmp_path)
    before = model.logits(TOKENS)
    lora = shaken(attached(model))
    after = model.logits(TOKENS)
    with lora.off():
        assert torch.equal(model.logits(TOKENS), before)
    assert torch.equal(model.logits(TOKENS), after)
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("dora", [False, True])
def test_merged_it_is_one_plain_model(tmp_path: Path, dora: bool) -> None:
    model = opened(tmp_path)
    lora = shaken(attached(model, dora=dora))
    expected = model.logits(TOKENS)
    plain = lora.merged()
    torch.testing.assert_close(plain.logits(TOKENS), expected, atol=1e-5, rtol=1e-5)
    assert set(plain.state_dict()) == set(opened(tmp_path).state_dict())
    assert plain.embedding.weight.data_ptr() == model.embedding.weight.data_ptr()
    assert torch.equal(model.logits(TOKENS), expected)
    assert lora.merge() is model
    torch.testing.assert_close(model.logits(TOKENS), expected, atol=1e-5, rtol=1e-5)
    assert set(model.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("dora", [False, True])
def test_training_goes_on_from_a_saved_adapter(tmp_path: Path, dora: bool) -> None:
    first = shaken(attached(opened(tmp_path), dora=dora, rslora=True))
    first.save(tmp_path / "adapter", base="base")
    second = attached(opened(tmp_path), dora=dora, rslora=True)
    second.load(tmp_path / "adapter")
    for (name, expected), (_, found) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)
    with pytest.raises(UsageError, match="--rank"):
        attached(opened(tmp_path), rank=8, dora=dora).load(tmp_path / "adapter")
    with pytest.raises(UsageError, match="--target-modules"):
        attached(opened(tmp_path), targets=("q_proj",)).load(tmp_path / "adapter")


def test_bfloat16_gradients_are_near_those_of_float32(tmp_path: Path) -> None:
    exact, rough = opened(tmp_path), opened(tmp_path, dtype=torch.bfloat16)
    ours = [shaken(attached(model)) for model in (exact, rough)]
    for model in (exact, rough):
        model.loss(TOKENS[:, :-1], TOKENS[:, 1:], scale=1 / 38).backward()
    for (name, expected), (_, found) in zip(*(lora.named_parameters() for lora in ours), strict=True):
        assert found.dtype == torch.float32, name
        assert expected.grad is not None
        assert found.grad is not None
        difference = float((found.grad - expected.grad).norm() / expected.grad.norm())
        assert difference < 0.1, (name, difference)


def test_a_base_in_8_bits_trains_much_as_the_base_does(tmp_path: Path) -> None:
    if not can_freeze(torch.zeros(1, dtype=torch.bfloat16)):
        with pytest.raises(UsageError, match="--int8-base"):
            attach(opened(tmp_path), LoraSettings(4), family_named("llama"), seed=1, int8=True)
        return
    ours = []
    for int8 in (False, True):
        model = opened(tmp_path, dtype=torch.bfloat16)
        ours.append(shaken(attach(model, LoraSettings(4, 12), family_named("llama"), seed=1, int8=int8)))
        model.loss(TOKENS[:, :-1], TOKENS[:, 1:], scale=1 / 38).backward()
    plain = ours[1].merged()
    torch.testing.assert_close(plain.logits(TOKENS), ours[1].model.logits(TOKENS), atol=0.1, rtol=0.1)
    for (name, expected), (_, found) in zip(*(lora.named_parameters() for lora in ours), strict=True):
        assert expected.grad is not None
        assert found.grad is not None
        assert float((found.grad - expected.grad).norm() / expected.grad.norm()) < 0.15, name


@pytest.mark.parametrize("magnitude", [False, True])
def test_an_adapter_lives_where_its_base_does(magnitude: bool) -> None:
    """torch's device without memory stands for a GPU: it refuses tensors of another device just the same."""
    elsewhere, generator = torch.device("meta"), torch.Generator().manual_seed(0)
    base = plain_linear(torch.empty(8, 6, device=elsewhere), torch.empty(8, device=elsewhere))
    layer = LowRankLinear(base, ((0, 4), (6, 8)), 2, 1.0, magnitude=magnitude, generator=generator)
    assert {parameter.device for parameter in layer.parameters()} == {elsewhere}
    layer(torch.empty(3, 6, device=elsewhere)).sum().backward()
    layer.take(torch.zeros(4, 6), torch.zeros(8, 4), torch.ones(8))
    assert layer.delta().device == layer.merged().weight.device == elsewhere


def test_dropout_follows_the_seed_of_the_step_and_only_trains(tmp_path: Path) -> None:
    model = opened(tmp_path)
    lora = shaken(attached(model, dropout=0.5))
    model.eval()
    expected = model.logits(TOKENS)
    model.train()
    losses = []
    for seed in (1, 1, 2):
        model.dropout.restart(seed)
        losses.append(model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).item())
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    assert torch.equal(model.logits(TOKENS), expected)
    assert lora.size == sum(parameter.numel() for parameter in lora.parameters())


def kept_by(compute: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """A result, and how many values were kept for its backward pass."""
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return compute(), sum(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_gradient_and_keeps_less(tmp_path: Path, dtype: torch.dtype) -> None:
    model = opened(tmp_path, dtype=dtype)
    lora = shaken(attached(model, dropout=0.25))
    model.train()
    results, kept = [], []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model.dropout.restart(3)
        loss, size = kept_by(lambda: model.loss(TOKENS[:, :-1], TOKENS[:, 1:], scale=1 / 38))
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in lora.parameters())])
        kept.append(size)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert kept[1] < kept[0] / 2


def test_the_same_seed_starts_the_same_adapter(tmp_path: Path) -> None:
    states = [attached(opened(tmp_path)).state() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = attach(opened(tmp_path), LoraSettings(4), family_named("llama"), seed=2).state()
    assert not torch.equal(other["blocks.0.mlp.down.lora_down"], states[0]["blocks.0.mlp.down.lora_down"])


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q_project.*q_proj"):
        attached(opened(tmp_path), targets=("q_project",))
    for settings in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}):
        with pytest.raises(UsageError, match="--"):
            LoraSettings(**settings)


@pytest.mark.parametrize("state", ["plain", "dora", "off", "dropout", "not packed", "other gate"])
def test_a_layer_gates_on_the_way_as_it_would_after_a_gate(tmp_path: Path, state: str) -> None:
    dtype = torch.float32 if state == "not packed" else torch.bfloat16
    lora = shaken(attached(opened(tmp_path, dtype=dtype), dropout=0.5 if state == "dropout" else 0.0, dora=state == "dora"))
    lora.model.train()
    layer = next(each for name, each in lora.layers.items() if name.endswith("mlp.down"))
    layer.off = state == "off"
    gate_up = torch.randn(3, 7, 96, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
    kind, results = "geglu" if state == "other gate" else "swiglu", []
    for on_the_way in (True, False):
        lora.model.dropout.restart(5)
        lora.model.zero_grad()
        y = layer.of_gated(gate_up, kind) if on_the_way else layer(gated(gate_up, kind))
        own = [parameter for parameter in layer.parameters() if parameter.requires_grad and state != "off"]
        results.append([y, *torch.autograd.grad(y.float().square().sum(), [gate_up, *own])])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
