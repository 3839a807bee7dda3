"""Chat templates are found in the old and the new places of a model folder, and written to the new ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from owngpt.errors import ModelFolderError, UsageError
from owngpt.text.chat import ChatTemplate
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer


def folder_with(tmp_path: Path, inline: object = None, files: dict[str, str] | None = None) -> Path:
    tokenizer = train_tokenizer([], kind="byte")
    tokenizer.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    if inline is not None:
        settings["chat_template"] = inline
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for name, source in (files or {}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8", newline="")
    return tmp_path


NAMED = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}, {"name": "rag", "template": "R"}]
PLACES = {
    "inline text": ("D", {}, "D", {}),
    "inline list": (NAMED, {}, "D", {"tool_use": "T", "rag": "R"}),
    "inline mapping": ({"default": "D", "rag": "R"}, {}, "D", {"rag": "R"}),
    "inline list without a default": (NAMED[1:], {}, None, {"tool_use": "T", "rag": "R"}),
    "file": (None, {"chat_template.jinja": "F\r\n{{ 1 }}\n"}, "F\r\n{{ 1 }}\n", {}),
    "file over inline": (NAMED, {"chat_template.jinja": "F"}, "F", {}),
    "files": (None, {"chat_template.jinja": "F", "additional_chat_templates/rag.jinja": "R"}, "F", {"rag": "R"}),
    "files in the older folder": (
        None,
        {"chat_templates/default.jinja": "D", "chat_templates/rag.jinja": "R"},
        "D",
        {"rag": "R"},
    ),
    "file of a processor": (None, {"chat_template.json": '{"chat_template": "P"}'}, "P", {}),
    "none": (None, {}, None, {}),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_read_and_one_is_written(place: str, tmp_path: Path) -> None:
    inline, files, default, named = PLACES[place]
    tokenizer = Tokenizer.load(folder_with(tmp_path / "old", inline, files))
    assert (tokenizer.chat_template, tokenizer.named_chat_templates) == (default, named)
    tokenizer.save(tmp_path / "new")
    again = Tokenizer.load(tmp_path / "new")
    assert (again.chat_template, again.named_chat_templates) == (default, named)
    assert "chat_template" not in json.loads((tmp_path / "new" / "tokenizer_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("place", ["inline text", "inline list", "files", "file over inline", "none"])
def test_transformers_finds_the_same_templates_in_what_we_write(place: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    inline, files, default, named = PLACES[place]
    Tokenizer.load(folder_with(tmp_path / "old", inline, files)).save(tmp_path / "new")
    for folder in ("old", "new"):
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / folder).chat_template
        assert theirs == ({"default": default, **named} if named else default)


def test_the_template_for_tools_is_taken_where_there_are_tools() -> None:
    tokenizer = train_tokenizer([], kind="byte").with_chat_template("D")
    tokenizer.named_chat_templates = {"tool_use": "T", "rag": "R"}
    assert ChatTemplate.of(tokenizer).source == "D"
    assert ChatTemplate.of(tokenizer, tools=[{}]).source == "T"
    assert ChatTemplate.of(tokenizer, "rag").source == "R"
    with pytest.raises(UsageError, match="default, rag, tool_use"):
        ChatTemplate.of(tokenizer, "absent")


def test_a_template_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = folder_with(tmp_path / "a")
    (broken / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFolderError, match="chat_template.jinja is not UTF-8"):
        Tokenizer.load(broken)
    with pytest.raises(ModelFolderError, match="neither a text nor a list"):
        Tokenizer.load(folder_with(tmp_path / "b", inline=["D"]))
    large = folder_with(tmp_path / "c", files={"chat_template.jinja": "x" * (1 << 21)})
    with pytest.raises(ModelFolderError, match="2,097,152 bytes"):
        Tokenizer.load(large)


def test_a_template_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([], kind="byte")
    tokenizer.named_chat_templates = {"../../evil": "x"}
    with pytest.raises(ModelFolderError, match="evil"):
        tokenizer.save(tmp_path)
