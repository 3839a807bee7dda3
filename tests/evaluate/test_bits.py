"""Scores agree with what is computed by hand, token by token."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tokenizers
import torch

from owngpt.errors import DataError, UsageError
from owngpt.evaluate import bits
from owngpt.evaluate.bits import score_text
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

CONFIG = GPTConfig(
    vocab_size=280, context_length=16, hidden_size=32, layers=2, heads=4, key_value_heads=2, head_size=8,
    intermediate_size=48, initializer_range=0.2,
)  # fmt: skip
TOKENIZER = train_tokenizer([], kind="byte")
TEXTS = ["The quick brown fox jumps over the lazy dog, twice.", "床前明月光，疑是地上霜。", "a", "short one"]


@pytest.fixture(scope="module")
def model() -> GPT:
    return GPT(CONFIG, generator=torch.Generator().manual_seed(5)).eval()


def without_begin_token() -> Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(backend)


def nats(model: GPT, history: list[int], target: int) -> float:
    with torch.inference_mode():
        return -float(model.logits(torch.tensor([history]))[0, -1].double().log_softmax(0)[target])


def by_hand(model: GPT, text: str, context_length: int) -> float:
    """Each byte from up to ``context_length`` tokens before it: what stride 1 means."""
    ids = [TOKENIZER.end_of_text_id, *TOKENIZER.encode(text)]
    return sum(nats(model, ids[max(0, i - context_length) : i], ids[i]) for i in range(1, len(ids)))


def test_stride_one_gives_every_token_its_full_history(model: GPT) -> None:
    score = score_text(model, TOKENIZER, TEXTS, context_length=9, stride=1)
    total = sum(by_hand(model, text, 9) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    assert score.tokens == score.bytes == size  # bytes are tokens here
    assert score.loss == pytest.approx(total / size, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(total / size), rel=1e-5)
    assert score.bits_per_byte == pytest.approx(total / size / math.log(2), rel=1e-5)
    assert (score.documents, score.context_length, score.stride) == (4, 9, 1)


def test_a_document_that_fits_is_scored_in_one_pass(model: GPT) -> None:
    text = "fits in sixteen"
    assert score_text(model, TOKENIZER, [text]).loss * 15 == pytest.approx(by_hand(model, text, 16), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 3, 8, 16])
def test_documents_are_independent_whatever_the_batch(model: GPT, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    together = score_text(model, TOKENIZER, TEXTS, stride=stride)
    alone = [score_text(model, TOKENIZER, [text], stride=stride) for text in TEXTS]
    assert together.loss * together.tokens == pytest.approx(sum(s.loss * s.tokens for s in alone), rel=1e-6)
    monkeypatch.setattr(bits, "BATCH_TOKENS", 20)
    monkeypatch.setattr(bits, "LOGIT_BYTES", 4 * CONFIG.vocab_size * 3)
    assert score_text(model, TOKENIZER, TEXTS, stride=stride).loss == pytest.approx(together.loss, rel=1e-6)


def test_the_default_stride_is_half_the_context_and_said(model: GPT) -> None:
    score = score_text(model, TOKENIZER, TEXTS)
    assert (score.context_length, score.stride) == (16, 8)
    assert set(score.to_dict()) == {
        "bits_per_byte", "perplexity", "loss", "tokens", "bytes", "context_length", "stride", "documents",
    }  # fmt: skip


def test_a_model_that_knows_nothing_needs_log2_of_its_vocabulary_a_token() -> None:
    model = GPT(CONFIG)
    with torch.no_grad():
        model.embedding.weight.zero_()
    score = score_text(model, TOKENIZER, ["中文 and English"])
    assert score.bits_per_byte == pytest.approx(math.log2(280), rel=1e-6)
    assert score.perplexity == pytest.approx(280, rel=1e-5)
    assert score.bytes == len("中文 and English".encode())


def test_without_a_begin_token_the_first_token_costs_a_uniform_choice(model: GPT) -> None:
    tokenizer = without_begin_token()
    score = score_text(model, tokenizer, ["a b a"])
    expected = math.log(280) + nats(model, [0], 1) + nats(model, [0, 1], 0)
    assert (score.tokens, score.bytes) == (3, 5)
    assert score.loss * 3 == pytest.approx(expected, rel=1e-5)


def test_scoring_leaves_the_model_in_the_mode_it_was_in_and_without_dropout() -> None:
    quiet = GPT(CONFIG, generator=torch.Generator().manual_seed(5))
    noisy = GPT(replace(CONFIG, dropout=0.5), generator=torch.Generator().manual_seed(5)).train()
    assert score_text(noisy, TOKENIZER, TEXTS).loss == pytest.approx(score_text(quiet, TOKENIZER, TEXTS).loss, rel=1e-6)
    assert noisy.training


def test_progress_counts_up_to_all_tokens(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "BATCH_TOKENS", 32)
    seen: list[int] = []
    score = score_text(model, TOKENIZER, TEXTS, progress=seen.append)
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == score.tokens


def test_documents_are_read_one_at_a_time(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "BATCH_TOKENS", 16)
    asked = scored = 0

    def texts() -> object:
        nonlocal asked
        for _ in range(20):
            asked += 1
            assert asked - scored // 15 <= 3
            yield "exactly fifteen"

    def progress(tokens: int) -> None:
        nonlocal scored
        scored = tokens

    assert score_text(model, TOKENIZER, texts(), progress=progress).documents == 20


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_is_an_error_and_not_a_score(model: GPT, texts: list[str]) -> None:
    with pytest.raises(DataError, match="no text to score"):
        score_text(model, TOKENIZER, texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 17}, r"context_length 17 is longer than the model's 16"),
        ({"context_length": 0}, r"context_length is 0; it must be at least 1"),
        ({"stride": 0}, r"stride is 0; it must be between 1 and the context length 16"),
        ({"context_length": 8, "stride": 9}, r"stride is 9; it must be between 1 and the context length 8"),
    ],
)
def test_windows_out_of_range_are_refused_with_the_limit(model: GPT, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        score_text(model, TOKENIZER, TEXTS, **options)
