"""A tokenizer goes into a GGUF file and comes back token for token, and llama.cpp cuts text the same."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from owngpt.errors import ModelFolderError
from owngpt.formats.gguf import load_gguf, save_gguf
from owngpt.formats.gguf.pretokenizers import GPT4O_PATTERN, LLAMA3_PATTERN, TEKKEN_PATTERN
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.special import SPLIT_PATTERN
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

CORPUS = [
    "It was the best of times, it was the worst of times; we'll see, I'M sure they've said so in 1859 and 12345678.\n",
    "这是最好的时代，这是最坏的时代。我们全都在直奔天堂，我们全都在直奔相反的方向。\n",
    "def f(x):\n    if x >= 10_000:\n\treturn {'a': x + 1, \"b\": [x // 2]}  # done\n\n\n",
    "C'était le meilleur et le pire de tous les temps, à l'Évêché; Straße, Ärger, Öl. Это было лучшее из времён.\n",
    "それは最良の時代であり、最悪の時代でもあった。 그것은 최고의 시절이었다. كان أحسن الأزمان.\n",
]
TEXTS = [
    *CORPUS, "", " ", "  two  spaces   three\n\n\n\tand tabs\r\n", "emoji 🙂🏳️‍🌈 👩‍👩‍👧 ✓",
    "3.14159, 1,000,000, ½ and ⅷ", "<s>", "[INST]",
    "HTTPServer camelCase SCREAMING_CASE don't DON'T", "trailing space ", "\n", "a\u00a0b\u2003c", "▁", "نص عربي ١٢٣",
    "<|im_start|>user\nHi<|im_end|>", "x" * 70, "\x00\x01", "ﬁ Ⅳ ㌔",
]  # fmt: skip
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(*steps: pre_tokenizers.PreTokenizer, nfc: bool = False, ignore_merges: bool = False) -> Tokenizer:
    """A byte-level BPE as published models have them."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC() if nfc else None
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=520, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False)
    backend.train_from_iterator(CORPUS * 5, trainer)
    if ignore_merges:
        description = json.loads(backend.to_str())
        description["model"]["ignore_merges"] = True
        backend = tokenizers.Tokenizer.from_str(json.dumps(description))
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return Tokenizer(backend, settings={"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"})


def sentencepiece(*, prefix: bool) -> Tokenizer:
    """A BPE in the manner of Llama 2 (with the prefix) and of Gemma (without): every way to make a token is a merge."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learner.train_from_iterator(CORPUS * 5, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    learned = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    known = set(learned)
    merges = [(token[:i], token[i:]) for token in learned for i in range(len(token) - 1, 0, -1)
              if token[:i] in known and token[i:] in known]  # fmt: skip
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    ends = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in tokens[:3]])
    backend.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 1)])
    return Tokenizer(backend, settings={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


TOKENIZERS: dict[str, Tokenizer] = {
    "gpt-2": byte_level(WORDS),
    "olmo": byte_level(WORDS, nfc=True),
    "smollm": byte_level(pre_tokenizers.Digits(individual_digits=True), WORDS),
    "llama-bpe": byte_level(split(LLAMA3_PATTERN), BYTES, ignore_merges=True),
    "dbrx": byte_level(split(LLAMA3_PATTERN), BYTES),
    "qwen2": byte_level(split(SPLIT_PATTERN), BYTES, nfc=True),
    "gpt-4o": byte_level(split(GPT4O_PATTERN), BYTES),
    "tekken": byte_level(split(TEKKEN_PATTERN), BYTES, ignore_merges=True),
    "owngpt-bpe": train_tokenizer(CORPUS * 5, vocab_size=500),
    "owngpt-byte": train_tokenizer([], kind="byte"),
    "owngpt-char": train_tokenizer(CORPUS, kind="char", vocab_size=600),
    "llama-2": sentencepiece(prefix=True),
    "gemma": sentencepiece(prefix=False),
}


def written(tokenizer: Tokenizer, path: Path) -> Path:
    """A GGUF of a tiny model with this tokenizer, whose embedding has some rows more."""
    config = GPTConfig(
        vocab_size=-(-tokenizer.vocab_size // 64) * 64 + 64, context_length=256, hidden_size=32, layers=1, heads=2,
        key_value_heads=1, head_size=16, intermediate_size=32,
    )  # fmt: skip
    save_gguf(path, GPT(config, generator=torch.Generator().manual_seed(1)), tokenizer, dtype="f32")
    return path


def noise(count: int) -> list[str]:
    """Texts of characters from everywhere, the same in every run."""
    generator = random.Random(5)
    pools = [
        "abcXYZ '",
        " \n\t\r ",
        "0123456789.,",
        "你好世界，。",
        "éàßñ",
        "Привет",
        "🙂🚀",
        "{}()[]<>=+-*/\\_#\"'",
        "اب١",
        "한국어",
    ]
    return ["".join(generator.choice(generator.choice(pools)) for _ in range(40)) for _ in range(count)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_same_tokens_come_back(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]
    _, again, _ = load_gguf(written(tokenizer, tmp_path / "model.gguf"))
    assert again.vocab_size == tokenizer.vocab_size
    for text in [*TEXTS, *noise(200)]:
        assert again.encode(text) == tokenizer.encode(text), text
        assert again.encode(text, special=True) == tokenizer.encode(text, special=True), text
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text)), text
    for token, index in tokenizer.special_ids.items():
        assert again.special_ids[token] == index
    assert (again.end_of_text_id, again.stop_ids) == (tokenizer.end_of_text_id, tokenizer.stop_ids)
    assert again.begin_of_text_id == tokenizer.begin_of_text_id
    assert again.settings["add_bos_token"] is (name in ("llama-2", "gemma"))


LIKE_LLAMA_CPP = [name for name in TOKENIZERS if name not in ("gpt-4o", "tekken")]
"""Its expressions for these two know upper and lower case of ASCII only."""


@pytest.mark.parametrize("name", LIKE_LLAMA_CPP)
def test_llama_cpp_cuts_text_the_same(name: str, tmp_path: Path) -> None:
    from peer_llama_cpp import LlamaCpp

    tokenizer = TOKENIZERS[name]
    llama = LlamaCpp(written(tokenizer, tmp_path / "model.gguf"))
    composed = normalizers.NFC()
    for text in [composed.normalize_str(text) for text in [*TEXTS, *noise(100)]]:
        if text and "\x00" not in text and "▁" not in text and "<" not in text:
            assert llama.tokens(text) == tokenizer.encode(text), text
    assert llama.tokens("<|im_start|>", special=True) == tokenizer.encode("<|im_start|>", special=True)


def test_case_is_cut_alike_in_english_for_the_newer_expressions(tmp_path: Path) -> None:
    from peer_llama_cpp import LlamaCpp

    for name in ("gpt-4o", "tekken"):
        llama = LlamaCpp(written(TOKENIZERS[name], tmp_path / f"{name}.gguf"))
        for text in (CORPUS[0], CORPUS[2], "HTTPServer camelCase SCREAMING_CASE don't DON'T 12345"):
            assert llama.tokens(text) == TOKENIZERS[name].encode(text), (name, text)


def test_a_chat_template_travels_along(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["owngpt-bpe"].with_chat_template("{{ messages[0]['content'] }}\n")
    assert load_gguf(written(tokenizer, tmp_path / "model.gguf"))[1].chat_template == "{{ messages[0]['content'] }}\n"


def unusual(**changes: Any) -> Tokenizer:
    """A byte-level tokenizer.json with other parts."""
    description = {**TOKENIZERS["gpt-2"].description, **changes}
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(description)), settings={"eos_token": "<|im_end|>"})


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (unusual(pre_tokenizer={"type": "Whitespace"}), "no name for the way"),
        (unusual(normalizer={"type": "Lowercase"}), "lowercase"),
        (Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))), "WordLevel"),
    ],
)
def test_what_llama_cpp_cannot_cut_is_refused(tokenizer: Tokenizer, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=message):
        written(tokenizer, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_merges_that_are_not_all_the_ways_are_refused(tmp_path: Path) -> None:
    description = TOKENIZERS["llama-2"].description
    fewer = {**description, "model": {**description["model"], "merges": description["model"]["merges"][:-5]}}
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(fewer)), settings={"eos_token": "</s>"})
    with pytest.raises(ModelFolderError, match="as SentencePiece's are"):
        written(tokenizer, tmp_path / "model.gguf")
