"""MXFP4 experts decode to the numbers of the format, and a folder that holds them is the model of its decoded twin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from owngpt.errors import ModelFolderError
from owngpt.formats.folder import load_model, save_model
from owngpt.formats.mxfp4 import decode
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.training import train_tokenizer

CONFIG = GPTConfig(
    vocab_size=300, context_length=32, hidden_size=64, layers=2, heads=4, key_value_heads=2, head_size=8, intermediate_size=32,
    activation="swiglu_clamped", experts=3, experts_per_token=2, attention_sinks=True, mlp_bias=True, query_key_norm=False,
    query_key_value_bias=True, attention_output_bias=True, norm_epsilon=1e-5,
)  # fmt: skip


def packed(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(119, 125, shape, generator=generator, dtype=torch.uint8)


def test_each_code_is_its_number() -> None:
    blocks = torch.arange(16, dtype=torch.uint8)[None] * 16 + torch.arange(15, -1, -1, dtype=torch.uint8)
    decoded = decode(blocks, torch.tensor([128], dtype=torch.uint8)).tolist()
    numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    numbers += [-number for number in numbers]
    assert decoded[1::2] == [2 * number for number in numbers]
    assert decoded[0::2] == [2 * number for number in reversed(numbers)]


def write(folder: Path) -> tuple[Path, Path]:
    """Two folders of one model: as it is published, and with its experts decoded."""
    generator = torch.Generator().manual_seed(1)
    plain, quantized = folder / "plain", folder / "quantized"
    model = GPT(CONFIG, generator=generator)
    for target in (plain, quantized):
        save_model(target, model, train_tokenizer(["some words to learn from " * 20], vocab_size=280), dtype="bfloat16")
    tensors = load_file(plain / "model.safetensors")
    published = dict(tensors)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors[name].shape
        blocks, scales = packed(generator, experts, outputs, inputs // 32)
        tensors[name] = decode(blocks, scales).transpose(1, 2).contiguous()
        del published[name]
        published |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, plain / "model.safetensors")
    save_file(published, quantized / "model.safetensors")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (quantized / "config.json").write_text(json.dumps(config))
    return plain, quantized


def test_a_folder_with_packed_experts_is_its_decoded_twin(tmp_path: Path) -> None:
    plain, quantized = write(tmp_path)
    (expected, _), (actual, tokenizer) = load_model(plain), load_model(quantized)
    assert all(torch.equal(value, actual.state_dict()[name]) for name, value in expected.state_dict().items())
    save_model(tmp_path / "again", actual, tokenizer, dtype="bfloat16")
    again, twin = load_file(tmp_path / "again" / "model.safetensors"), load_file(plain / "model.safetensors")
    assert set(again) == set(twin)
    assert all(torch.equal(again[name], twin[name]) for name in twin)


def test_parts_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    _, quantized = write(tmp_path)
    file = quantized / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.experts.down_proj"
    save_file({**tensors, f"{name}_scales": tensors[f"{name}_scales"][:, 1:].contiguous()}, file)
    with pytest.raises(ModelFolderError, match=r"layers\.1\.mlp\.experts\.down_proj_blocks .* are not the two parts"):
        load_model(quantized)
    del tensors[f"{name}_scales"]
    save_file(tensors, file)
    with pytest.raises(ModelFolderError, match=r"missing .*layers\.1\.mlp\.experts\.down_proj"):
        load_model(quantized)


def test_another_quantization_is_refused(tmp_path: Path) -> None:
    _, quantized = write(tmp_path)
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match="quantization_config"):
        load_model(quantized)
