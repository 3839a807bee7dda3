"""The engine in float32 is the plain forward pass; packed weights are measured against it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from owngpt.bench.quality import quality
from owngpt.engine.packing import recordable
from owngpt.errors import DataError
from owngpt.formats.folder import save_model
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.training import train_tokenizer

TEXT = "The cat sat on the mat. A dog, a bird and 猫坐在垫子上。\n" * 60
CONFIG = GPTConfig(
    vocab_size=320, context_length=128, hidden_size=64, layers=2, heads=2, key_value_heads=1, head_size=32, intermediate_size=96
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = GPT(CONFIG, generator=torch.Generator().manual_seed(0))
    save_model(folder, model, train_tokenizer([TEXT], kind="bpe", vocab_size=320), card=None, generation=None)
    return folder


def test_float32_decoding_scores_and_writes_as_the_plain_forward_pass(folder):
    found = quality(folder, TEXT, weights=(), quick=True)
    exact = found["weights"]["float32"]
    assert exact["perplexity"] == pytest.approx(found["perplexity_float32"], rel=1e-5)
    assert exact["greedy_same"] == found["greedy_prompts"] > 0
    assert exact["alone_to_batch"] < 1e-3


@pytest.mark.skipif(recordable(CONFIG) is not None, reason="packed kernels do not run here")
def test_packed_weights_raise_perplexity_a_little_and_a_batch_changes_next_to_nothing(folder):
    found = quality(folder, TEXT, weights=("bf16", "int8", "int4"), quick=True)
    for kind in ("bf16", "int8", "int4"):
        assert abs(found["weights"][kind]["rise"]) < 0.05
        assert found["weights"][kind]["alone_to_batch"] < 0.1


def test_a_text_too_short_is_refused(folder):
    with pytest.raises(DataError, match="measuring quality needs"):
        quality(folder, "Short.", weights=())
