"""LLaMA's family: what absent and null fields mean, both spellings of rotary fields, and which layout holds what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from owngpt.errors import OwnGPTError
from owngpt.families import family_for, family_named
from owngpt.model.config import GPTConfig
from owngpt.model.rotary import RotaryScaling

VALUES = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 32,
    "max_position_embeddings": 512,
}  # fmt: skip
PLAIN = GPTConfig(
    vocab_size=100, context_length=512, hidden_size=64, layers=3, heads=4, key_value_heads=2, head_size=16, intermediate_size=96,
    query_key_norm=False,
)  # fmt: skip
SMOLLM2 = {
    "_name_or_path": "x", "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers.js_config": {"dtype": "q4"},
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip


def read(model_type: str, **changes: Any) -> GPTConfig:
    return family_named(model_type).to_config({**VALUES, **changes})


def test_a_published_config_is_read_whole() -> None:
    config = family_named("llama").to_config(SMOLLM2)
    assert config.parameter_count() == 134_515_008
    assert (config.head_size, config.key_value_heads, config.rotary_base) == (64, 3, 1e5)


def test_an_absent_field_is_the_family_s_default_and_a_null_is_not() -> None:
    assert read("llama").key_value_heads == 32
    assert read("mistral").key_value_heads == 8
    assert read("mistral", num_key_value_heads=None).key_value_heads == 32
    assert read("qwen2").key_value_heads == 32
    assert read("qwen3").head_size == 128
    assert read("llama").head_size == 2
    assert read("mistral").attention_windows == (4096,) * 3
    assert read("mistral", sliding_window=None).attention_windows == ()
    assert read("mistral", sliding_window=7).attention_windows == (7, 7, 7)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwen_windows_from_either_spelling(model_type: str) -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 9}
    assert read(model_type, **sliding, max_window_layers=1).attention_windows == (0, 9, 9)
    assert read(model_type, **sliding, max_window_layers=28).attention_windows == ()
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read(model_type, **sliding, layer_types=kinds).attention_windows == (9, 0, 9)
    assert read(model_type, sliding_window=9, max_window_layers=1).attention_windows == ()  # not used


def test_biases_are_the_family_s() -> None:
    def biases(config: GPTConfig) -> tuple[bool, bool, bool]:
        return config.query_key_value_bias, config.attention_output_bias, config.mlp_bias

    assert biases(read("llama")) == (False, False, False)
    assert biases(read("llama", attention_bias=True, mlp_bias=True)) == (True, True, True)
    assert biases(read("mistral")) == (False, False, False)
    assert biases(read("qwen2")) == (True, False, False)
    assert biases(read("qwen3", attention_bias=True)) == (True, True, False)


SCALINGS: list[tuple[dict[str, Any], RotaryScaling, int]] = [
    ({"type": "linear", "factor": 2}, RotaryScaling("linear", 2.0), 512),
    ({"rope_type": "dynamic", "factor": 4.0}, RotaryScaling("dynamic", 4.0, 512), 2048),
    (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 64},
        RotaryScaling("llama3", 8.0, 64),
        512,
    ),
    ({"type": "yarn", "factor": 2.0}, RotaryScaling("yarn", 2.0, 512), 1024),
    ({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}, RotaryScaling("yarn", 2.0, 256), 512),
    ({"type": "yarn", "factor": None, "original_max_position_embeddings": 128}, RotaryScaling("yarn", 4.0, 128), 512),
]


@pytest.mark.parametrize(("block", "scaling", "context_length"), SCALINGS)
def test_scalings_are_read_from_either_spelling_and_written_in_both(
    block: dict[str, Any], scaling: RotaryScaling, context_length: int
) -> None:
    old = read("llama", rope_theta=7e5, rope_scaling=block)
    new = read("llama", rope_parameters={**block, "rope_theta": 7e5})
    assert old == new
    assert (old.rotary_scaling, old.rotary_base, old.context_length) == (scaling, 7e5, context_length)
    written = family_named("llama").from_config(old)
    assert family_named("llama").to_config(written) == old
    for spelling in ("rope_parameters", "rope_scaling"):
        assert family_named("llama").to_config({k: v for k, v in written.items() if k != spelling}) == old


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "rope_scaling .*longrope"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor is missing"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "warp": 1}}, "not implemented: warp"),
    ("llama", {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}}, "high_freq_factor is missing"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 5}}, "is 5; it must be"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 1e9}}, "at most 16777216 positions"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": "2"}}, "factor is '2'"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}, "rope_scaling"),
    ("llama", {"rope_theta": 1.0}, r"rope_theta is 1\.0"),
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, r"partial_rotary_factor is 0\.5"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp is 2"),
    ("llama", {"num_attention_heads": 5}, "a divisor of hidden_size 64"),
    ("llama", {"sliding_window": 8}, "not implemented: sliding_window"),
    ("llama", {"quantization_config": {"bits": 4}}, "not implemented: quantization_config"),
    ("mistral", {"sliding_window": -1}, "sliding_window is -1"),
    ("mistral", {"attention_bias": True}, "attention_bias is True"),
    ("qwen2", {"use_mrope": True}, "use_mrope is True"),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": None, "layer_types": ["sliding_attention"] * 3},
        "sliding_window is m",
    ),
    ("qwen2", {"max_window_layers": "x"}, "max_window_layers is 'x'"),
]


@pytest.mark.parametrize(("model_type", "changes", "message"), REFUSED)
def test_what_is_not_implemented_is_refused_by_name(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OwnGPTError, match=message):
        read(model_type, **changes)


def test_a_layout_is_chosen_by_what_it_can_say() -> None:
    assert family_for(replace(PLAIN, query_key_norm=True)).model_type == "qwen3"
    assert family_for(PLAIN).model_type == "llama"
    assert family_for(PLAIN, "mistral").model_type == "mistral"
    assert family_for(PLAIN, "gpt2").model_type == "llama"  # which cannot say it
    assert family_for(replace(PLAIN, attention_windows=(5, 5, 5))).model_type == "mistral"
    assert family_for(replace(PLAIN, hidden_size=66)).model_type == "mistral"
    assert family_for(replace(PLAIN, query_key_value_bias=True)).model_type == "qwen2"
    assert family_for(replace(PLAIN, query_key_value_bias=True, attention_windows=(0, 5, 5))).model_type == "qwen2"
    assert family_for(replace(PLAIN, mlp_bias=True)).model_type == "llama"
    scaled = replace(PLAIN, rotary_scaling=RotaryScaling("dynamic", 4.0, 128))
    assert family_for(scaled).model_type == "llama"
    with pytest.raises(OwnGPTError, match="context_length is 500, not the 512 of its rotary scaling"):
        family_for(replace(scaled, context_length=500))
