"""A hub on this machine, and caches that belong to the test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from owngpt.kernels import build

sys.path.insert(0, str(Path(__file__).parent))

from hub_server import Hub, running


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The library reads its variables when it is imported, so its constants are set; a test of the command sets variables."""
    from huggingface_hub import constants

    for name in [name for name in os.environ if name.startswith(("HF_", "MODELSCOPE_")) or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    kernels = build.cache_folder()  # compiled once for all tests
    kernels.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels").symlink_to(kernels)
    monkeypatch.setenv("OWNGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    for hub in running():
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        yield hub
