"""Rotary frequencies of published models are those of transformers, for short and for long texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from owngpt.engine.layout import Part
from owngpt.engine.torch_runner import BLOCK, TorchRunner
from owngpt.errors import UsageError
from owngpt.families import family_named
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.model.rotary import RotaryScaling, RotaryTables, rotary_frequencies, rotary_tables

transformers = pytest.importorskip("transformers")
rope = pytest.importorskip("transformers.modeling_rope_utils")

PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "Llama 3.1": (131072, {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
                  | {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    "Llama 3.2": (131072, {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
                  | {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    "Qwen2.5 long": (32768, {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}),
    "gpt-oss": (131072, {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
                | {"truncate": False, "original_max_position_embeddings": 4096}),
    "DeepSeek": (163840, {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0}
                 | {"mscale": 0.707, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}),
    "Vicuna 16k": (16384, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}),
    "dynamic": (4096, {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}),
}  # fmt: skip


def configs(name: str) -> tuple[Any, GPTConfig]:
    """(theirs, ours)"""
    positions, fields = PUBLISHED[name]
    values = {"vocab_size": 50, "hidden_size": 256, "intermediate_size": 9, "num_hidden_layers": 1, "num_attention_heads": 2}
    values |= {"num_key_value_heads": 2, "max_position_embeddings": positions, "rope_parameters": dict(fields)}
    return transformers.LlamaConfig(**values), family_named("llama").to_config(values)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("length", [10, 9000])
def test_frequencies_are_theirs(name: str, length: int) -> None:
    theirs, ours = configs(name)
    expected, magnitude = rope.ROPE_INIT_FUNCTIONS[theirs.rope_parameters["rope_type"]](theirs, seq_len=length)
    actual = rotary_frequencies(128, ours.rotary_base, ours.rotary_scaling, length)
    assert torch.allclose(actual, expected, rtol=1e-6, atol=0)
    assert ours.rotary_scaling is not None
    assert ours.rotary_scaling.magnitude == pytest.approx(magnitude, abs=1e-12)


def test_unscaled_tables_are_theirs_bit_by_bit_far_from_the_start() -> None:
    embedding = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(
        transformers.LlamaConfig(
            hidden_size=64, num_attention_heads=1, rope_parameters={"rope_type": "default", "rope_theta": 1e5}
        )
    )
    cosines, sines = embedding(torch.zeros(1), torch.arange(8192)[None])
    ours = rotary_tables(8192, 64, 1e5)
    assert torch.equal(ours[0], cosines[0, :, :32])
    assert torch.equal(ours[1], sines[0, :, :32])


def test_a_long_context_costs_nothing_until_it_is_used() -> None:
    tables = RotaryTables(64, 1e4, None, 1 << 24)
    first = tables.reach(10, torch.device("cpu"))
    assert first[0].shape == (4096, 32)
    assert tables.reach(4096, torch.device("cpu"))[0] is first[0]
    assert torch.equal(tables.reach(4097, torch.device("cpu"))[0][:4096], first[0])
    assert RotaryTables(64, 1e4, None, 100).reach(7, torch.device("cpu"))[0].shape == (100, 32)


def test_dynamic_scaling_follows_the_text_and_leaves_short_ones_alone() -> None:
    scaling = RotaryScaling("dynamic", 4.0, 16)
    tables = RotaryTables(8, 1e4, scaling, 64)
    plain = rotary_tables(64, 8, 1e4)
    assert torch.equal(tables.reach(16, torch.device("cpu"))[0], plain[0])
    longer = tables.reach(40, torch.device("cpu"))[0]
    assert not torch.equal(longer, plain[0])
    assert not torch.equal(tables.reach(41, torch.device("cpu"))[0], longer)
    assert torch.equal(tables.reach(3, torch.device("cpu"))[0], plain[0])


def test_a_long_text_is_rotated_by_its_whole_length_in_the_engine_too() -> None:
    values = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 9, "num_hidden_layers": 2, "num_attention_heads": 2}
    values |= {"max_position_embeddings": 500, "rope_scaling": {"type": "dynamic", "factor": 4.0}}
    model = GPT(family_named("llama").to_config(values), generator=torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
        ids = torch.randint(0, 50, (1, 1124), generator=torch.Generator().manual_seed(3))
        expected = model.logits(ids)[0, -1]
    blocks = range(1, 2 + 1124 // BLOCK)
    actual = TorchRunner(model, 1 + len(blocks)).run([Part(ids[0].tolist(), 0, blocks)])
    assert torch.allclose(actual[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "longrope"}, "'longrope' is not implemented; these are: linear, dynamic, llama3, yarn"),
        ({"kind": "linear", "factor": 0.5}, r"factor is 0\.5; it must be at least 1"),
        ({"kind": "linear", "factor": float("nan")}, "factor is nan"),
        ({"kind": "linear", "factor": float("inf")}, "factor is inf"),
        ({"kind": "yarn", "factor": 2.0}, "needs original_context_length"),
        ({"kind": "llama3", "factor": 2.0, "original_context_length": 8, "low_frequency_factor": 4.0}, "below high_frequency"),
        ({"kind": "yarn", "factor": 2.0, "original_context_length": 8, "beta_slow": 40.0}, "beta_slow 40.0"),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RotaryScaling(**values)
