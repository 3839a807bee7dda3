"""A folder that holds only GPT-2's vocab.json and merges.txt has the tokens that transformers finds in it, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from owngpt.errors import ModelFolderError
from owngpt.text.tokenizer import Tokenizer

TEXTS = (
    "",
    "Hello world",
    "  It's what we'll\tcall 1859.\r\n\n  Don't!",
    "滚滚长江东逝水,浪花淘尽英雄。",
    "naïve café 🧑‍👩‍👧 \x00\x7f\u2028",
    "x <pad> <|endoftext|>y<z> <extra>w  <sep> Hello",
    "#version: 0.2 # version",
    " " * 40 + "\n" * 9,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    english, chinese = "It's what we'll call 1859, #version Hello world ", "滚滚长江东逝水,浪花淘尽英雄"
    backend.train_from_iterator([english * 20, chinese * 20], trainer)
    backend.model.save(str(tmp_path))
    return tmp_path


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


SETTINGS: list[dict[str, Any]] = [
    {},
    {"pad_token": "<pad>", "sep_token": {"__type": "AddedToken", "content": "<sep>", "lstrip": True, "rstrip": True}},
    {"add_prefix_space": True},
    {"add_bos_token": True},
    {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<z>", "<extra>"]},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
def test_ids_are_those_of_transformers(settings: dict[str, Any], where: str, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if where == "special_tokens_map.json" and any(name.startswith("add_") for name in settings):
        pytest.skip("the map names tokens only")
    write(folder, where, settings)
    theirs, ours = transformers.GPT2Tokenizer.from_pretrained(folder), Tokenizer.load(folder)
    for text in TEXTS:
        expected = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, special=True) == expected, text
        assert ours.decode(expected, skip_special=False) == theirs.decode(expected, clean_up_tokenization_spaces=False), text
    assert ours.encode_prompt("Hello world") == theirs("Hello world").input_ids
    assert ours.special_ids == {token: theirs.convert_tokens_to_ids(token) for token in theirs.all_special_tokens}
    assert (ours.begin_of_text_id, ours.end_of_text_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_the_saved_tokenizer_is_the_same_in_one_file(folder: Path, tmp_path: Path) -> None:
    opened = Tokenizer.load(folder)
    opened.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.fingerprint == opened.fingerprint
    assert again.kind == "bpe"
    assert again.stop_ids == {0}
    assert all(again.encode(text) == opened.encode(text) for text in TEXTS)
    assert again.decode(again.encode(TEXTS[5]), skip_special=False) == TEXTS[5]


def test_added_tokens_keep_the_ids_that_the_files_give(folder: Path) -> None:
    size = len(json.loads((folder / "vocab.json").read_text()))
    write(folder, "added_tokens.json", {"<|extra_1|>": size, "<|extra_2|>": size + 5})
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": {str(size + 7): {"content": "<z>", "special": True}}})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("a<|extra_2|><z>", special=True)[1:] == [size + 5, size + 7]
    assert tokenizer.encode("<|extra_1|>") == [size]
    assert tokenizer.special_ids == {"<|endoftext|>": 0, "<z>": size + 7}
    assert tokenizer.vocab_size == size + 8


def test_a_byte_order_mark_and_windows_lines_are_no_content(folder: Path) -> None:
    expected = [Tokenizer.load(folder).encode(text) for text in TEXTS]
    for name in ("vocab.json", "merges.txt"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert [Tokenizer.load(folder).encode(text) for text in TEXTS] == expected


def test_a_tokenizer_json_beside_them_wins(folder: Path, tmp_path: Path) -> None:
    Tokenizer.load(folder).save(folder)
    write(folder, "merges.txt", "not two")
    write(folder, "vocab.json", "broken")
    assert Tokenizer.load(folder).kind == "bpe"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("config.json", {"model_type": "llama"}, "GPT2Tokenizer of a llama model: copy its tokenizer.json"),
        ("tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"}, "Qwen2Tokenizer of a gpt2 model"),
        ("vocab.json", {"a": 0, "b</w>": 1}, "no token for 255 of the 256 bytes"),
        ("vocab.json", {"a": 0, "b": 0}, "one id to several tokens"),
        ("vocab.json", {"a": -1}, "something else than an id from 0 to 16,777,215"),
        ("vocab.json", {"a": "0"}, "something else than an id"),
        ("vocab.json", ["a"], "holds a list, not a JSON object"),
        ("merges.txt", "#version: 0.2\nH e\nH e l\n", "line 3: 'H e l' is not two tokens"),
        ("merges.txt", "#version: 0.2\nq never\n", "merges.txt does not fit its vocab.json"),
        ("added_tokens.json", {"<z>": "many"}, "'<z>' has the id many"),
        ("added_tokens.json", {"<|endoftext|>": 7}, "'<|endoftext|>' has the id 7"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9999999999": {"content": "<z>"}}}, "'<z>' has the id None"),
    ],
)  # fmt: skip
def test_what_is_not_of_this_kind_is_named(name: str, value: Any, said: str, folder: Path) -> None:
    write(folder, name, value)
    with pytest.raises(ModelFolderError, match=said.replace("|", r"\|")):
        Tokenizer.load(folder)


def test_many_special_tokens_take_no_time(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"additional_special_tokens": [f"<{index}>" for index in range(3000)]})
    size = len(json.loads((folder / "vocab.json").read_text()))
    assert Tokenizer.load(folder).special_ids["<2999>"] == size + 2999
