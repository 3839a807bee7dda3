"""A family reads its config.json whole or refuses it by name, and says exactly which configurations it can hold."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from owngpt.errors import ModelFolderError, UsageError
from owngpt.families import FAMILIES, Family, family_for, family_named
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.model.rotary import RotaryScaling

NATIVE = GPTConfig(
    vocab_size=300, context_length=32, hidden_size=32, layers=2, heads=4, key_value_heads=2, head_size=16, intermediate_size=64
)
CLASSIC = replace(
    NATIVE, key_value_heads=4, head_size=8, positions="learned", norm="layernorm", norm_epsilon=1e-5, activation="gelu_tanh",
    query_key_value_bias=True, attention_output_bias=True, mlp_bias=True, query_key_norm=False,
)  # fmt: skip
LOCAL = replace(CLASSIC, heads=2, key_value_heads=2, head_size=16, query_key_value_bias=False, attention_windows=(0, 5))
POST = replace(CLASSIC, norm_placement="post", intermediate_size=128)
J = replace(
    CLASSIC, positions="rotary", rotary_fraction=0.25, parallel_residual=True, shared_norm=True, query_key_value_bias=False,
    attention_output_bias=False, output_head_bias=True,
)  # fmt: skip
NEOX = replace(CLASSIC, positions="rotary", rotary_fraction=0.5, rotary_base=500.0, parallel_residual=True)
GEMMA = replace(
    NATIVE, norm_placement="sandwich", norm_weight_offset=1.0, activation="geglu", embedding_scale=32**0.5,
    attention_windows=(7, 0), local_rotary_base=100.0, attention_scale=20**-0.5,
)  # fmt: skip
OSS = replace(
    NATIVE, activation="swiglu_clamped", experts=4, experts_per_token=2, mlp_bias=True, query_key_norm=False,
    attention_sinks=True, attention_windows=(7, 0),
    rotary_scaling=RotaryScaling("yarn", 2.0, original_context_length=16, truncate=False),
)  # fmt: skip
EXAMPLES = {
    "qwen3": NATIVE, "gpt2": CLASSIC, "gpt_neo": LOCAL, "openai-gpt": POST, "gptj": J, "gpt_neox": NEOX, "gemma3_text": GEMMA,
    "gpt_oss": OSS,
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_configuration_survives_its_config_json(name: str) -> None:
    config = EXAMPLES[name]
    family = family_for(config)
    assert family.model_type == name
    read = family.to_config(family.from_config(config))
    assert replace(read, attention_scale=config.attention_scale) == config  # gpt_neo keeps the scale in the weights
    assert family_named(name) is family


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_are_those_of_the_model(name: str, tied: bool) -> None:
    config = replace(EXAMPLES[name], tie_embeddings=tied)
    maps = family_for(config).tensors(config)
    assert {entry.ours: entry.shape for entry in maps} == {
        key: tuple(value.shape) for key, value in GPT(config).state_dict().items()
    }
    assert all(sum(part.rows for part in entry.parts) == entry.shape[0] for entry in maps)
    theirs = [part.name for entry in maps for part in entry.parts]
    assert len(theirs) == len(set(theirs))


CHANGES: dict[str, Any] = {
    "positions": "none", "rotary_base": 77.0, "rotary_fraction": 0.75, "local_rotary_base": 55.0,
    "rotary_scaling": RotaryScaling("linear", 3.0), "norm": "layernorm", "norm_epsilon": 1e-3, "norm_placement": "sandwich",
    "norm_weight_offset": 0.5, "parallel_residual": True, "shared_norm": True, "activation": "relu2", "experts": 3,
    "experts_per_token": 1, "query_key_value_bias": True, "attention_output_bias": True, "mlp_bias": True,
    "query_key_norm": True, "attention_windows": (0, 3), "attention_scale": 3.0, "attention_sinks": True,
    "embedding_scale": 2.0, "output_head_bias": True, "tie_embeddings": False,
}  # fmt: skip
"""A value that differs, for every field that decides what a model computes beside its sizes."""
OPPOSITE: dict[str, Any] = {
    "norm": "rmsnorm", "norm_placement": "pre", "parallel_residual": False, "shared_norm": False, "experts": 0,
    "query_key_value_bias": False, "attention_output_bias": False, "mlp_bias": False, "query_key_norm": False,
    "attention_windows": (), "attention_sinks": False, "output_head_bias": False, "norm_weight_offset": 0.0,
    "embedding_scale": 1.0, "local_rotary_base": None, "rotary_scaling": None, "activation": "swiglu",
}  # fmt: skip


def changed(config: GPTConfig) -> list[GPTConfig]:
    """The configuration with one field changed at a time, where that makes sense."""
    found = []
    for changes in (CHANGES, OPPOSITE):
        for field, value in changes.items():
            together = {"experts_per_token": min(value, 1)} if field == "experts" else {}
            try:
                other = replace(config, **{field: value}, **together)
            except UsageError:
                continue
            found += [other] if other != config else []
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_what_a_family_says_it_holds_it_holds(family: Family) -> None:
    """Whatever field of whatever model is changed: its misfits say so, or its config.json and its tensors do."""
    held = 0
    for example in EXAMPLES.values():
        for config in (example, *changed(example)):
            if family.misfits(config):
                continue
            held += 1
            read = family.to_config(family.from_config(config))
            if read.local_rotary_base != config.local_rotary_base:  # spelled out, which computes the same
                assert config.local_rotary_base is None
                assert read.local_rotary_base == config.rotary_base or not config.attention_windows
            if family.model_type != "gpt_neo":  # which keeps it in the weights
                scales = [each.attention_scale or each.head_size**-0.5 for each in (read, config)]
                assert scales[0] == scales[1]
            ignored = {"local_rotary_base": None, "attention_scale": None, "dropout": 0.0}
            if config.positions != "rotary":
                ignored |= {"rotary_base": 1.0, "rotary_fraction": 1.0}
            assert replace(read, **ignored) == replace(config, **ignored)
            shapes = {entry.ours: entry.shape for entry in family.tensors(config)}
            assert shapes == {key: tuple(value.shape) for key, value in GPT(config).state_dict().items()}
    assert held > 0 or family.model_type in ("llama", "mistral", "qwen2")


def test_every_field_that_matters_is_among_the_changes() -> None:
    sizes = {"vocab_size", "context_length", "hidden_size", "layers", "heads", "key_value_heads", "head_size"}
    training = {"dropout", "attention_dropout", "initializer_range"}
    assert set(CHANGES) == {field.name for field in fields(GPTConfig)} - sizes - training - {"intermediate_size"}


def test_what_no_family_holds_is_explained() -> None:
    with pytest.raises(ModelFolderError, match=r"qwen3: activation is 'relu2'.*gpt2: positions is 'rotary'"):
        family_for(replace(NATIVE, activation="relu2"))
    with pytest.raises(ModelFolderError, match="not a power of two"):
        family_for(replace(LOCAL, heads=4, key_value_heads=4, head_size=8))
    with pytest.raises(ModelFolderError, match="different windows"):
        family_for(replace(LOCAL, attention_windows=(3, 5)))


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ModelFolderError, match=r"'mamba' is not implemented; these are: qwen3, llama, .*gpt2"):
        family_named("mamba")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3", {"new_trick": 3}, "not implemented: new_trick"),
    ("qwen3", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("qwen3", {"hidden_size": None}, "hidden_size is missing"),
    ("qwen3", {"hidden_size": "32"}, "hidden_size is '32'"),
    ("qwen3", {"num_hidden_layers": 10**12}, "at most 10000"),
    ("qwen3", {"max_position_embeddings": 10**12}, "at most 16777216"),
    ("qwen3", {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "rope_parameters"),
    ("qwen3", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
    ("qwen3", {"layer_types": ["full_attention"]}, "a list of 2 names"),
    ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}, "use_sliding_window is False"),
    ("qwen3", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ("qwen3", {"rope_theta": 5.0}, r"rope_theta is 5\.0; it must be the 10000\.0 that its rotary block says"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("gpt2", {"n_head": 5}, "a divisor of n_embd 32"),
    ("gpt2", {"activation_function": "mish"}, "activation_function is 'mish'"),
    ("gpt_neo", {"attention_layers": ["global"]}, "2 layers in all"),
    ("gpt_neo", {"attention_layers": None, "attention_types": 7}, "attention_types is 7"),
    ("openai-gpt", {"tie_word_embeddings": "yes"}, "true or false"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG)
def test_a_config_that_is_not_understood_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    family = family_named(name)
    values = family.from_config(EXAMPLES[name]) | change
    with pytest.raises(ModelFolderError, match=message):
        family.to_config({key: value for key, value in values.items() if value is not None})


def test_old_spellings_are_read() -> None:
    family = family_named("qwen3")
    values = family.from_config(replace(NATIVE, rotary_base=7.0))
    del values["rope_parameters"], values["layer_types"]
    assert family.to_config(values | {"torch_dtype": "bfloat16", "rope_scaling": None}).rotary_base == 7.0
    old = {
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_ctx": 1024,
        "n_positions": 1024,
        "vocab_size": 50257,
        "architectures": ["x"],
    }
    assert family_named("gpt2").to_config(old).parameter_count() == 124_439_808
    neo = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 9}
    assert family_named("gpt_neo").to_config(neo).attention_windows == (0, 9, 0, 9)


def test_gemma_s_window_pattern_holds_where_both_spellings_of_it_are_there() -> None:
    values = family_named("gemma3_text").from_config(replace(EXAMPLES["gemma3_text"], layers=6, attention_windows=()))
    del values["layer_types"]
    values |= {"sliding_window": 9, "sliding_window_pattern": 3, "_sliding_window_pattern": 6}  # transformers reads the first
    assert family_named("gemma3_text").to_config(values).attention_windows == (9, 9, 0, 9, 9, 0)


def test_each_family_has_its_own_names() -> None:
    assert len({family.model_type for family in FAMILIES}) == len(FAMILIES)
