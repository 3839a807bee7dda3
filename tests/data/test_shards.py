"""Shards hold exactly the tokens of the text, and are never used for a text or tokenizer that they were not made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from texts import chinese, english

from owngpt.data import shards
from owngpt.data.corpus import Corpus, collect
from owngpt.data.encoder import BulkEncoder
from owngpt.data.shards import load_prepared, tokenize
from owngpt.errors import DataError, UsageError
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([english(60_000, 1), chinese(20_000, 2)], kind="bpe", vocab_size=700)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "in").mkdir()
    for seed in range(40):
        (tmp_path / "in" / f"{seed}.txt").write_text(english(4000, seed) if seed % 4 else chinese(4000, seed))
    (tmp_path / "in" / "long.txt").write_text(english(300_000, 999))
    return collect([tmp_path / "in"], tmp_path / "corpus")


def documents_of(split: shards.TokenSplit, tokenizer: Tokenizer) -> list[str]:
    tokens = split.slice(0, split.token_count)
    ends = np.flatnonzero(tokens == split.end_of_text_id)
    assert ends[0] == 0 and ends[-1] == len(tokens) - 1
    return [tokenizer.decode(tokens[low + 1 : high].tolist()) for low, high in zip(ends[:-1], ends[1:], strict=True)]


def test_shards_decode_to_the_documents(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = tokenize(corpus, tokenizer, tmp_path / "tokens")
    for split, text in ((data.train, corpus.train), (data.validation, corpus.validation)):
        assert documents_of(split, tokenizer) == list(text.texts())
        assert (split.document_count, split.byte_count) == (text.documents, text.bytes)
    assert data.train.shards[0].dtype == np.uint16


def test_a_large_vocabulary_takes_32_bits_and_byte_tokens_work(corpus: Corpus, tmp_path: Path) -> None:
    class Wide:
        """A byte tokenizer whose ids need 32 bits."""

        vocab_size, end_of_text_id, fingerprint = 200_000, 199_999, "wide"

        def encode(self, text: str) -> list[int]:
            return [byte + 100_000 for byte in text.encode()]

        def encode_batch(self, texts: object) -> list[list[int]]:
            return [self.encode(text) for text in texts]  # type: ignore[attr-defined]

    data = tokenize(corpus, Wide(), tmp_path / "tokens", workers=1)
    assert data.train.shards[0].dtype == np.uint32
    assert data.train.token_count == corpus.train.bytes + corpus.train.documents + 1


def test_many_shards_read_as_one_stream(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenize(corpus, tokenizer, tmp_path / "one").train
    monkeypatch.setattr(shards, "SHARD_TOKENS", 10_000)
    cut = tokenize(corpus, tokenizer, tmp_path / "many").train
    assert len(cut.shards) > 5
    for start, stop in ((0, 5), (9_995, 10_005), (9_000, 31_000), (0, whole.token_count), (7, 7)):
        assert (cut.slice(start, stop) == whole.slice(start, stop)).all()


def test_words_put_together_are_what_the_tokenizer_makes_of_the_text(tokenizer: Tokenizer) -> None:
    texts = [english(30_000, 5), chinese(3000, 5), "", "it's  'TIS\t\n\n x_y (a)…“q”—é 12½ e\u0301 \u3000全角\r\n\n  end  "]
    texts += ["\n  \n\t if x == 1:\n\t\treturn  y # 3rd\n\n\n", "İıſK ²³ ª º Ǆ Ω ﬁ 𝒳 \u00a0 \u2009 ٣"]
    assert BulkEncoder(tokenizer).encode_batch(texts) == tokenizer.encode_batch(texts)
    by_byte = train_tokenizer([], kind="byte")
    assert BulkEncoder(by_byte).encode_batch(texts) == by_byte.encode_batch(texts)


def test_words_are_not_used_where_the_pattern_is_another(tokenizer: Tokenizer) -> None:
    import tokenizers

    other = tokenizers.Tokenizer.from_str(tokenizer._plain.to_str())
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    wrapped = Tokenizer(other)
    assert BulkEncoder(wrapped).encode_batch([english(5000, 1)]) == wrapped.encode_batch([english(5000, 1)])


def test_the_same_text_and_tokenizer_use_the_shards_again(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenize(corpus, tokenizer, tmp_path / "tokens")
    before = (tmp_path / "tokens" / "train-00000.bin").stat().st_mtime_ns
    tokenize(corpus, tokenizer, tmp_path / "tokens")
    assert (tmp_path / "tokens" / "train-00000.bin").stat().st_mtime_ns == before


def test_another_tokenizer_or_text_makes_new_shards(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenize(corpus, tokenizer, tmp_path / "tokens")
    other = train_tokenizer([english(50_000, 3)], kind="bpe", vocab_size=400)
    data = tokenize(corpus, other, tmp_path / "tokens")
    assert documents_of(data.validation, other) == list(corpus.validation.texts())
    (tmp_path / "in" / "new.txt").write_text(english(5000, 777))
    changed = collect([tmp_path / "in"], tmp_path / "corpus")
    assert tokenize(changed, other, tmp_path / "tokens").train.token_count != data.train.token_count


def test_a_damaged_or_missing_shard_is_named_and_made_anew(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    good = tokenize(corpus, tokenizer, tmp_path / "tokens").train.slice(0, 1000)
    shard = tmp_path / "tokens" / "train-00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    with pytest.raises(DataError, match=r"train-00000.bin is damaged \(its SHA-256"):
        load_prepared(tmp_path / "tokens")
    shard.write_bytes(content[:-2])
    with pytest.raises(DataError, match="train-00000.bin has .* bytes where the manifest says"):
        load_prepared(tmp_path / "tokens")
    shard.unlink()
    with pytest.raises(DataError, match="train-00000.bin cannot be read"):
        load_prepared(tmp_path / "tokens")
    assert (tokenize(corpus, tokenizer, tmp_path / "tokens").train.slice(0, 1000) == good).all()


def test_a_run_broken_off_before_the_manifest_leaves_nothing_to_use(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenize(corpus, tokenizer, tmp_path / "tokens")
    (tmp_path / "tokens" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest.json is missing"):
        load_prepared(tmp_path / "tokens")
    assert tokenize(corpus, tokenizer, tmp_path / "tokens").train.token_count > 0


def test_a_folder_with_something_else_is_left_alone(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        tokenize(corpus, tokenizer, tmp_path / "tokens")
