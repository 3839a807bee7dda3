"""Every architecture goes out to GGUF and comes back, and llama.cpp computes the same from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from owngpt.errors import ModelFolderError, UsageError
from owngpt.families import family_for, family_named
from owngpt.formats.folder import load_model
from owngpt.formats.gguf import load_gguf, save_gguf
from owngpt.formats.gguf.header import read_header
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.training import train_tokenizer

TEXT = "It was the best of times, it was the worst of times. 这是最好的时代，这是最坏的时代。 def f(x): return x + 1024\n" * 30
TOKENIZER = train_tokenizer([TEXT], vocab_size=400)

LLAMA = {
    "vocab_size": 448, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "max_position_embeddings": 128,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
GEMMA = {
    **LLAMA, "num_hidden_layers": 7, "sliding_window": 8, "query_pre_attn_scalar": 16, "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0, "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(7)],
}  # fmt: skip
GPT_OSS = {
    **LLAMA, "head_dim": 32, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True,
    "tie_word_embeddings": False, "intermediate_size": 64, "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 256,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False,
    },
}  # fmt: skip
GPT2 = {"vocab_size": 448, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
NEOX = {
    "vocab_size": 448, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 128, "rotary_pct": 0.5, "hidden_act": "gelu",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", **LLAMA, "tie_word_embeddings": True},
    "qwen3-untied": {"model_type": "qwen3", **LLAMA, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32},
    "llama": {"model_type": "llama", **LLAMA, "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", **LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama3-rotary": {"model_type": "llama", **LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama-linear": {"model_type": "llama", **LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral": {"model_type": "mistral", **LLAMA, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", **LLAMA, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gpt_neox": {"model_type": "gpt_neox", **NEOX},
    "gpt_neox-serial": {"model_type": "gpt_neox", **NEOX, "use_parallel_residual": False},
    "gemma3": {"model_type": "gemma3_text", **GEMMA},
    "gpt_oss": {"model_type": "gpt_oss", **GPT_OSS},
}


def model_of(values: dict[str, Any]) -> GPT:
    """A model whose every tensor matters: norms and biases are not ones and zeros."""
    model = GPT(family_named(values["model_type"]).to_config(values), generator=torch.Generator().manual_seed(1)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_float32_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = model_of(MODELS[name])
    save_gguf(tmp_path / "model.gguf", model, TOKENIZER, dtype="float32")
    again, tokenizer, generation = load_gguf(tmp_path / "model.gguf")
    assert again.config == GPTConfig(**{**vars(model.config), **unsaid(model.config, again.config)})
    assert tokenizer.fingerprint == TOKENIZER.fingerprint
    assert generation["eos_token_id"] == sorted(TOKENIZER.stop_ids)
    for key, value in model.state_dict().items():
        if "norm" in key and model.config.norm_weight_offset:  # stored with 1 added: the last bits are lost
            torch.testing.assert_close(again.state_dict()[key], value, atol=2e-7, rtol=0)
        else:
            assert torch.equal(again.state_dict()[key], value), key


def unsaid(config: GPTConfig, again: GPTConfig) -> dict[str, Any]:
    """Fields that only training knows, and Llama 3's scaling, of which only ratios matter."""
    found = {name: getattr(again, name) for name in ("dropout", "attention_dropout", "initializer_range")}
    if config.rotary_scaling is not None and config.rotary_scaling.kind == "llama3":
        ours, theirs = config.rotary_scaling, again.rotary_scaling
        assert theirs is not None
        assert ours.original_context_length and theirs.original_context_length
        for name in ("low_frequency_factor", "high_frequency_factor"):
            ratio = getattr(ours, name) / ours.original_context_length
            assert getattr(theirs, name) / theirs.original_context_length == pytest.approx(ratio, rel=1e-4)
        found["rotary_scaling"] = theirs
    return found


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_same(name: str, tmp_path: Path) -> None:
    from peer_llama_cpp import LlamaCpp

    model = model_of(MODELS[name])
    save_gguf(tmp_path / "model.gguf", model, TOKENIZER, dtype="float32")
    llama = LlamaCpp(tmp_path / "model.gguf", context_length=128)
    ids = TOKENIZER.encode(TEXT)[:24]
    assert llama.tokens(TEXT[:200]) == TOKENIZER.encode(TEXT[:200])
    with torch.no_grad():
        ours = torch.log_softmax(model.logits(torch.tensor([ids]))[0].float(), dim=-1)
    expected = [float(ours[index - 1, ids[index]]) for index in range(1, len(ids))]
    # ggml rounds its GELU and its keys and values to 16 bits.
    assert llama.log_probabilities(ids) == pytest.approx(expected, abs=0.05, rel=0.01)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q4_0"])
def test_smaller_types_stay_close_and_are_what_they_say(dtype: str, tmp_path: Path) -> None:
    model = model_of(MODELS["qwen3"])
    save_gguf(tmp_path / "model.gguf", model, TOKENIZER, dtype=dtype)
    tensors = read_header(tmp_path / "model.gguf").tensors
    assert tensors["blk.0.attn_q.weight"].kind.name == dtype.upper()
    assert tensors["blk.0.attn_norm.weight"].kind.name == "F32"
    again, _, _ = load_gguf(tmp_path / "model.gguf")
    error = {"f16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2, "q4_0": 0.1}[dtype]
    for key, value in model.state_dict().items():
        assert (again.state_dict()[key] - value).abs().max() <= error * max(1.0, float(value.abs().max())), key


def test_rows_that_are_no_whole_blocks_become_halves_and_it_is_said(tmp_path: Path) -> None:
    model = model_of({**MODELS["qwen3"], "intermediate_size": 72})
    notes = save_gguf(tmp_path / "model.gguf", model, TOKENIZER, dtype="q8_0")
    assert len(notes) == 1
    assert "2 tensors are stored as F16" in notes[0]
    assert "ffn_down" in notes[0]
    assert load_gguf(tmp_path / "model.gguf")[0].config.intermediate_size == 72


def test_values_too_large_for_a_half_stay_float32(tmp_path: Path) -> None:
    model = model_of(MODELS["qwen3"])
    with torch.no_grad():
        model.blocks[0].mlp.down.weight[0, 0] = 1e6
    notes = save_gguf(tmp_path / "model.gguf", model, TOKENIZER, dtype="f16")
    assert "1 tensors are stored as F32" in notes[0]
    assert float(load_gguf(tmp_path / "model.gguf")[0].blocks[0].mlp.down.weight[0, 0]) == 1e6


def test_windows_that_llama_cpp_ignores_limit_the_context(tmp_path: Path) -> None:
    model = model_of({**MODELS["mistral"], "sliding_window": 16})
    notes = save_gguf(tmp_path / "model.gguf", model, TOKENIZER)
    assert "16 tokens" in notes[0]
    again, _, _ = load_gguf(tmp_path / "model.gguf")
    assert again.config.context_length == 16
    assert family_for(again.config).model_type == "mistral"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt_neo", "vocab_size": 448, "hidden_size": 64, "num_layers": 2, "num_heads": 4}, "gpt_neo"),
        ({**MODELS["gpt2"], "activation_function": "relu"}, "activation is relu"),
        ({**MODELS["qwen3"], "attention_bias": True}, "biases"),
        ({**MODELS["llama"], "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({**MODELS["gemma3"], "rope_local_base_freq": 5000.0}, "rotary base"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=message):
        save_gguf(tmp_path / "model.gguf", model_of(values), TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_an_unknown_type_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q4_k"):
        save_gguf(tmp_path / "model.gguf", model_of(MODELS["gpt2"]), TOKENIZER, dtype="q4_k")


def test_a_folder_with_one_gguf_is_a_model_and_with_two_a_question(tmp_path: Path) -> None:
    save_gguf(tmp_path / "a.gguf", model_of(MODELS["qwen3"]), TOKENIZER)
    assert load_model(tmp_path)[0].config.layers == 2
    save_gguf(tmp_path / "b.gguf", model_of(MODELS["qwen3"]), TOKENIZER)
    with pytest.raises(ModelFolderError, match="2 GGUF files.*a.gguf, b.gguf"):
        load_model(tmp_path)


def test_sampling_settings_travel_along(tmp_path: Path) -> None:
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 40, "repetition_penalty": 1.1}
    save_gguf(tmp_path / "model.gguf", model_of(MODELS["qwen3"]), TOKENIZER, generation=settings)
    found = load_gguf(tmp_path / "model.gguf")[2]
    assert {name: found[name] for name in settings} == settings
    assert math.isclose(found["temperature"], 0.7)
