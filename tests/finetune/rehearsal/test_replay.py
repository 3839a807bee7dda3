"""General text to be reminded by: named by the owner, or written by the model itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from owngpt.errors import DataError
from owngpt.finetune.rehearsal.prompts import prompts
from owngpt.finetune.rehearsal.replay import replay_store
from owngpt.finetune.sequences.batches import ExampleBatches, ReplaySource
from owngpt.finetune.sequences.store import ExampleStore, write_store
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.chat import CHATML
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer([], kind="byte")


@pytest.fixture(scope="module")
def network(words: Tokenizer) -> GPT:
    config = GPTConfig(
        vocab_size=words.vocab_size, context_length=96, hidden_size=32, layers=1, heads=2, key_value_heads=2, head_size=16,
        intermediate_size=64,
    )  # fmt: skip
    return GPT(config, generator=torch.Generator().manual_seed(0))


def made(
    folder: Path, network: GPT, words: Tokenizer, source: str | Path | None, tokens: int = 600, **other: object
) -> ExampleStore:
    values = {"context_length": 96, "seconds": None, "seed": 1, "say": lambda _: None, **other}
    return replay_store(folder, network=network, tokenizer=words, source=source, tokens=tokens, **values)


def test_a_model_writes_what_it_is_to_be_reminded_by(tmp_path: Path, network: GPT, words: Tokenizer) -> None:
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    first, second = (made(tmp_path / name, network, words, None) for name in ("first", "second"))
    assert 600 <= first.stats.tokens < 600 + 32 * 97
    assert first.fingerprint == second.fingerprint, "the same seed writes the same"
    assert network.training and all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    openings = set(prompts("openings", ("English", "Chinese")))
    for encoded in first:
        begins = words.decode(encoded.token_ids[~encoded.learned])
        assert begins in openings or not begins
        assert encoded.learned[-1] and encoded.targets >= 8


def test_a_model_that_chats_answers_questions_too(tmp_path: Path, network: GPT, words: Tokenizer) -> None:
    store = made(tmp_path / "store", network, words.with_chat_template(CHATML), None, tokens=3000)
    asked = [words.decode(encoded.token_ids[~encoded.learned], skip_special=False) for encoded in store]
    share = np.mean(["assistant" in text for text in asked])
    assert 0.2 < share < 0.8


def test_writing_ends_with_the_time(tmp_path: Path, network: GPT, words: Tokenizer) -> None:
    store = made(tmp_path / "store", network, words, None, tokens=10_000_000, seconds=1.0)
    assert 0 < store.stats.tokens < 10_000_000


def test_without_any_time_there_is_still_something(tmp_path: Path, network: GPT, words: Tokenizer) -> None:
    assert made(tmp_path / "store", network, words, None, tokens=10_000, seconds=0.0).stats.learned >= 8


def test_a_folder_of_text_is_drawn_from_all_over(tmp_path: Path, network: GPT, words: Tokenizer) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"{number} is the number of this text. " * 300, encoding="utf-8")
    store = made(tmp_path / "store", network, words, tmp_path, tokens=12_000)
    assert 12_000 <= store.stats.tokens < 14_500
    sources = {encoded.origin.file for encoded in store}
    assert len(sources) >= 4
    assert all(encoded.learned[1:].all() for encoded in store), "everything in a text is learned"


def test_examples_are_rendered_as_the_base_has_them(tmp_path: Path, network: GPT, words: Tokenizer) -> None:
    rows = [{"prompt": f"Question {number}?", "completion": f" Answer {number}."} for number in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    store = made(tmp_path / "store", network, words, tmp_path / "rows.jsonl", tokens=400)
    encoded = store.example(0)
    assert words.decode(encoded.token_ids[encoded.learned]).startswith(" Answer")


def test_a_source_that_is_nowhere_is_named_with_what_there_is(tmp_path: Path, network: GPT, words: Tokenizer) -> None:
    with pytest.raises(DataError, match="--replay-from nowhere is neither .* shakespeare.*chitchat"):
        made(tmp_path / "store", network, words, "nowhere")


def test_batches_mix_it_in(tmp_path: Path, network: GPT, words: Tokenizer) -> None:
    replayed = made(tmp_path / "replay", network, words, None)
    from owngpt.finetune.examples.example import Origin
    from owngpt.finetune.sequences.encoded import Encoded

    own = [Encoded(np.full(20, 65), np.arange(20) > 0, Origin("own", line)) for line in range(40)]
    store = write_store(own, tmp_path / "own", context_length=96)
    batches = ExampleBatches(store, context_length=96, batch_size=1, seed=0, replay=ReplaySource(replayed, 0.25))
    rows = [batches.next() for _ in range(40)]
    assert sum(bool((batch.inputs[0, :5] != 65).any()) for batch in rows) == 10


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_rows_too_short_for_much_still_have_something(
    tmp_path: Path, network: GPT, words: Tokenizer, seconds: float | None
) -> None:
    store = made(tmp_path / "store", network, words, None, tokens=200, context_length=14, seconds=seconds)
    assert len(store) >= 1
    assert all(0 < encoded.targets <= 14 for encoded in store)
