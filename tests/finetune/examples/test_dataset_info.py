"""LLaMA-Factory's dataset_info.json: files, columns, tags and rankings as its README describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from owngpt.errors import DataError, UsageError
from owngpt.finetune.examples.dataset import open_examples
from owngpt.finetune.examples.example import Chat, PlainText, Preference

ALPACA = {"instruction": "Translate.", "input": "Hund", "output": "dog", "system": "S", "history": [["a", "b"]]}


def describe(tmp_path: Path, rows: list[Any], entry: dict[str, Any] | None = None, **more: Any) -> Path:
    (tmp_path / "data.json").write_text(json.dumps(rows, ensure_ascii=False))
    described = {"mine": {"file_name": "data.json", **(entry or {})}, **more}
    (tmp_path / "dataset_info.json").write_text(json.dumps(described))
    return tmp_path


def said(example: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in example.messages]


def test_alpaca_reads_the_usual_columns_and_no_others(tmp_path: Path) -> None:
    [chat] = open_examples([describe(tmp_path, [ALPACA])])
    assert said(chat) == [("user", "Translate.\nHund"), ("assistant", "dog")]
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
    [chat] = open_examples([describe(tmp_path, [ALPACA], {"columns": columns})])
    assert said(chat)[:3] == [("system", "S"), ("user", "a"), ("assistant", "b")]


def test_columns_may_be_called_anything(tmp_path: Path) -> None:
    rows = [{"Frage": "Wie?", "Antwort": "So.", "input": "not meant"}]
    [chat] = open_examples([describe(tmp_path, rows, {"columns": {"prompt": "Frage", "response": "Antwort"}})])
    assert said(chat) == [("user", "Wie?"), ("assistant", "So.")]


def test_sharegpt_with_tags_of_its_own(tmp_path: Path) -> None:
    rows = [{"dialog": [{"wer": "Kunde", "was": "Hallo"}, {"wer": "Mira", "was": "Guten Tag"}], "tools": "[]"}]
    tags = {"role_tag": "wer", "content_tag": "was", "user_tag": "Kunde", "assistant_tag": "Mira"}
    entry = {"formatting": "sharegpt", "columns": {"messages": "dialog", "tools": "tools"}, "tags": tags}
    [chat] = open_examples([describe(tmp_path, rows, entry)])
    assert isinstance(chat, Chat) and said(chat) == [("user", "Hallo"), ("assistant", "Guten Tag")]


def test_rankings_of_both_formats(tmp_path: Path) -> None:
    alpaca = [{"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go"}]
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    sharegpt = [
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Go"},
        }
    ]
    [first] = open_examples([describe(tmp_path, alpaca, {"ranking": True, "columns": columns})])
    [second] = open_examples([describe(tmp_path, sharegpt, {"ranking": True, "formatting": "sharegpt"})])
    for pair in (first, second):
        assert isinstance(pair, Preference)
        assert (pair.prompt, pair.chosen) == (({"role": "user", "content": "Hi"},), ({"role": "assistant", "content": "Hello"},))


def test_a_set_for_pre_training_is_text(tmp_path: Path) -> None:
    [text] = open_examples([describe(tmp_path, [{"doc": "Once."}], {"columns": {"prompt": "doc"}})])
    assert isinstance(text, PlainText) and text.text == "Once."


def test_one_of_several_sets_is_named(tmp_path: Path) -> None:
    folder = describe(
        tmp_path, [{"text": "x"}] * 5, {"columns": {"prompt": "text"}, "num_samples": 3}, other={"file_name": "b.json"}
    )
    for source in (folder, folder / "dataset_info.json"):
        with pytest.raises(UsageError, match=r"describes 2 sets \(mine, other\); name one, as in .*dataset_info.json:mine"):
            open_examples([source])
    for source in (f"{folder}:mine", f"{folder}/dataset_info.json:mine"):
        assert len(open_examples([source])) == 3
    with pytest.raises(UsageError, match="describes no set 'yours'; it has mine, other"):
        open_examples([f"{folder}:yours"])
    with pytest.raises(DataError, match="b.json does not exist"):
        open_examples([f"{folder}:other"])


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"hf_hub_url": "a/b"}, UsageError, r"is kept elsewhere \(hf_hub_url: a/b\); download it"),
        ({"columns": {"images": "image"}}, UsageError, "holds images; only text can be learned"),
        ({"columns": {"kto_tag": "tag"}}, UsageError, "KTO"),
        ({"formatting": "chatml"}, UsageError, "has the formatting 'chatml'; known are alpaca, sharegpt, openai"),
        ({"ranking": True, "columns": {"prompt": "a"}}, UsageError, "names no columns for chosen and rejected"),
        ({"file_name": ""}, DataError, "names no file; add file_name"),
        ({"columns": ["a"]}, DataError, "columns of mine in .* is no object of names"),
        ({"tags": {"role_tag": 3}}, DataError, "tags of mine in .* is no object of names"),
        ({"num_samples": 0}, DataError, "num_samples of mine in .* is 0"),
    ],
)
def test_descriptions_that_cannot_be_followed_say_why(
    tmp_path: Path, entry: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_examples([describe(tmp_path, [ALPACA], entry)])


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}"):
        (tmp_path / "dataset_info.json").write_text(text)
        with pytest.raises(DataError, match="name the data file itself"):
            open_examples([tmp_path])
