"""A tokenizer loses nothing, streams whole characters and is the same after saving."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from owngpt.errors import DataError, ModelFolderError, UsageError
from owngpt.text.special import SPECIAL_TOKENS
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

ENGLISH = "It was the best of times, it was the worst of times; it's what we'll call 1859.\n\n    Indented\ttext.\r\n"
CHINESE = "滚滚长江东逝水,浪花淘尽英雄。是非成败转头空:青山依旧在,几度夕阳红。\n"
ODD = "é e\u0301 🧑‍👩‍👧 \u0000 \ufffd \u2028 <0x41> <|endoftext|> Ünïcödé\u00a0 ａｂｃ"
KINDS = ("bpe", "byte", "char")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer([ENGLISH * 50, CHINESE * 50], kind=request.param, vocab_size=512)


def test_any_text_comes_back(tokenizer: Tokenizer) -> None:
    generator = random.Random(1)
    noise = "".join(
        chr(generator.choice((generator.randrange(0x20, 0xD800), generator.randrange(0xE000, 0x110000)))) for _ in range(2000)
    )
    for text in ("", ENGLISH, CHINESE, ODD, noise, " " * 5000 + "\n" * 300):
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_special_tokens_are_the_first_ids_and_distinct(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.special_ids) == list(SPECIAL_TOKENS)
    assert list(tokenizer.special_ids.values()) == list(range(16))
    assert tokenizer.end_of_text_id == tokenizer.begin_of_text_id == 0
    assert tokenizer.padding_id == 1
    assert tokenizer.stop_ids == {0, 3}


def test_special_text_is_text_unless_asked(tokenizer: Tokenizer) -> None:
    text = "a<|im_start|>b"
    assert not set(tokenizer.encode(text)) & tokenizer.special_id_set
    assert tokenizer.encode(text, special=True).count(tokenizer.special_ids["<|im_start|>"]) == 1
    assert tokenizer.decode(tokenizer.encode(text, special=True)) == "ab"


def test_kind_is_told_after_loading(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.kind in KINDS
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.kind == tokenizer.kind
    assert loaded.fingerprint == tokenizer.fingerprint == Tokenizer.load(tmp_path / "tokenizer.json").fingerprint
    assert loaded.encode(ENGLISH + CHINESE + ODD) == tokenizer.encode(ENGLISH + CHINESE + ODD)
    assert (loaded.end_of_text_id, loaded.padding_id, loaded.vocab_size) == (0, 1, tokenizer.vocab_size)


def test_streaming_gives_whole_characters_and_the_whole_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(ODD + CHINESE)
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join(pieces) + stream.finish() == ODD + CHINESE
    assert all("\ufffd" not in piece for piece in pieces if piece not in ODD)


def test_streaming_equals_decoding_for_any_ids(tokenizer: Tokenizer) -> None:
    generator = random.Random(2)
    for _ in range(20):
        ids = [generator.randrange(tokenizer.vocab_size + 5) for _ in range(40)]
        stream = tokenizer.stream()
        streamed = "".join(map(stream.push, ids)) + stream.finish()
        assert streamed == tokenizer.decode(ids)


def test_a_long_text_in_parts_has_the_tokens_of_the_whole(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("owngpt.text.tokenizer.PART_CHARACTERS", 5000)
    paragraph = "One line.\n\n  \n   Another, 12 'tis!\n\tTab?\r\n\r\n。\n" + CHINESE
    text = paragraph * (50_000 // len(paragraph))
    assert len(list(tokenizer._parts(text))) > 2
    whole = tokenizer._plain.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_batch(["x", text, ""]) == [tokenizer.encode("x"), whole, []]


def test_bytes_of_all_tokens_cover_every_byte(tokenizer: Tokenizer) -> None:
    single = {tokenizer.token_bytes(index) for index in range(16, tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= single | {chr(byte).encode() for byte in range(128)}


def test_bpe_compresses_and_a_tiny_text_still_works() -> None:
    trained = train_tokenizer([ENGLISH * 50 + CHINESE * 50], vocab_size=600)
    assert len(trained.encode(ENGLISH + CHINESE)) < len((ENGLISH + CHINESE).encode()) / 3
    tiny = train_tokenizer(["ab"], vocab_size=4096)
    assert tiny.vocab_size == 16 + 256
    assert tiny.decode(tiny.encode(CHINESE)) == CHINESE


def test_char_keeps_the_most_frequent_and_spells_the_rest() -> None:
    trained = train_tokenizer(["aaab"], kind="char", vocab_size=273)
    assert trained.vocab_size == 273
    assert len(trained.encode("a")) == 1
    assert trained.encode("b") == [16 + ord("b")]


def test_training_is_deterministic() -> None:
    one, two = (train_tokenizer([ENGLISH * 20, CHINESE * 20], vocab_size=500) for _ in range(2))
    assert one.fingerprint == two.fingerprint


def test_long_runs_do_not_explode() -> None:
    generator = random.Random(3)
    run = "".join(chr(0x4E00 + min(int(generator.paretovariate(0.7)), 3000)) for _ in range(60_000))
    trained = train_tokenizer([run, "=" * 300_000, " " * 300_000, "ab" * 100_000], vocab_size=1024)
    assert trained.decode(trained.encode(run)) == run


def test_wrong_input_is_named() -> None:
    with pytest.raises(UsageError, match="vocab_size 100"):
        train_tokenizer(["text"], vocab_size=100)
    with pytest.raises(UsageError, match="wordpiece"):
        train_tokenizer(["text"], kind="wordpiece")  # type: ignore[arg-type]
    for kind in ("bpe", "char"):
        with pytest.raises(DataError, match="no text"):
            train_tokenizer(["", ""], kind=kind)  # type: ignore[arg-type]
    plain = train_tokenizer([], kind="byte")
    with pytest.raises(UsageError, match="half a character"):
        plain.encode("a\ud800")
    with pytest.raises(UsageError, match="bytes"):
        plain.encode(b"a")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="token id 9999"):
        plain.token(9999)


def test_loading_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="does not exist"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)
    train_tokenizer([], kind="byte").save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelFolderError, match="list"):
        Tokenizer.load(tmp_path)


def test_chat_template_is_kept_beside_or_read_inline(tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message.content }}\r\n{% endfor %}"
    trained = train_tokenizer([], kind="byte").with_chat_template(template)
    trained.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == template
    (tmp_path / "chat_template.jinja").unlink()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    assert Tokenizer.load(tmp_path).chat_template == template


def test_foreign_tokenizers_stream_like_they_decode() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    vocabulary = {
        "<unk>": 0,
        "</s>": 1,
        "▁": 2,
        "▁Hi": 3,
        "▁you": 4,
        "é": 5,
        **{f"<0x{byte:02X}>": 6 + byte for byte in range(256)},
    }
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    foreign = Tokenizer(backend)
    assert foreign.kind == "other"
    assert foreign.end_of_text_id == 1
    ids = [3, 4, 5, *(6 + byte for byte in "语".encode()), 2, 4]
    stream = foreign.stream()
    pieces = [stream.push(token_id) for token_id in ids]
    assert pieces == ["Hi", " you", "é", "", "", "语", " ", " you"]
    assert "".join(pieces) + stream.finish() == foreign.decode(ids)
