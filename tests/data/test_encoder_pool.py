"""Processes that encode change how fast tokens come, never which, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from texts import chinese, english

from owngpt.data import shards
from owngpt.data.corpus import Corpus, collect
from owngpt.data.encoder import BulkEncoder
from owngpt.data.encoder_pool import EncoderPool
from owngpt.data.shards import tokenize
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

BATCHES = [[english(3000, seed), "", chinese(900, seed)] for seed in range(12)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([english(60_000, 1), chinese(20_000, 2)], kind="bpe", vocab_size=700)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("texts")
    for seed in range(9):
        (folder / f"{seed}.txt").write_text(english(40_000, seed) if seed % 3 else chinese(30_000, seed))
    return collect([folder], tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_tokens_are_the_same_for_every_number_of_processes(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(shards, "_BATCH_BYTES", 50_000)
    chosen = train_tokenizer(corpus.train.sample(200_000), kind=kind, vocab_size=700)  # type: ignore[arg-type]
    made = [tokenize(corpus, chosen, tmp_path / f"tokens-{workers}", workers=workers).manifest for workers in (1, 2, 3)]
    assert made[0] == made[1] == made[2]


def test_batches_come_back_in_order(tokenizer: Tokenizer) -> None:
    here = BulkEncoder(tokenizer)
    with EncoderPool(tokenizer, 2) as pool:
        found = list(pool.map(BATCHES, lambda batch: batch))
    assert [batch for batch, _ in found] == BATCHES
    for batch, encoded in found:
        assert encoded.counts.tolist() == [len(ids) for ids in here.encode_batch(batch)]
        assert encoded.ids.tolist() == here.encode(batch).ids.tolist()


def test_a_process_that_ends_is_stood_in_for(tokenizer: Tokenizer) -> None:
    expected = [BulkEncoder(tokenizer).encode(batch).ids.tolist() for batch in BATCHES]
    with EncoderPool(tokenizer, 2) as pool:
        pool._processes.workers[0].kill()
        found = [encoded.ids.tolist() for _, encoded in pool.map(BATCHES, lambda batch: batch)]
    assert found == expected


def test_processes_and_files_are_gone_afterwards_and_after_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(KeyboardInterrupt), EncoderPool(tokenizer, 2) as pool:
        for _ in pool.map(BATCHES, lambda batch: batch):
            raise KeyboardInterrupt
    assert all(worker.poll() is not None for worker in pool._processes.workers)
    assert not Path(pool._tokenizer_folder.name).exists()
