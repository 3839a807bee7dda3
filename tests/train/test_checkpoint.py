"""A checkpoint is whole or not there; a damaged one is named, never loaded."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path

import pytest
import torch

from owngpt.errors import CheckpointError
from owngpt.train import checkpoint


def example_state(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.weight": torch.randn(64, 32, generator=generator),
        "optimizer.moment": torch.randn(64, 32, generator=generator).to(torch.bfloat16),
        "generator": generator.get_state(),
        "transposed": torch.randn(5, 3, generator=generator).T,
        "scalar": torch.tensor(3.0),
        "count": 12345678901234567890,
        "rate": 0.1 + 0.2,
    }


def same(left: dict, right: dict) -> bool:
    def equal(a: object, b: object) -> bool:
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return type(a) is type(b) and a == b

    return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1200, example_state(), {"position": {"epoch": 3}, "loss": 0.1})
    found = checkpoint.load(path)
    assert path.name == "step-00001200"
    assert found.step == 1200
    assert same(found.state, example_state())
    assert found.meta == {"position": {"epoch": 3}, "loss": 0.1}


def test_infinite_and_missing_numbers_come_back(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"worst": math.inf, "none": math.nan, "x": torch.zeros(1)}, {"best": None})
    found = checkpoint.load(path)
    assert found.state["worst"] == math.inf and math.isnan(found.state["none"]) and found.meta == {"best": None}


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    for step in (9, 100000000, 20):
        newest = checkpoint.save(tmp_path, step, example_state(), {})
    assert checkpoint.find_newest(tmp_path)[0].name == "step-100000000"
    assert newest.name == "step-00000020"
    assert checkpoint.find_newest(tmp_path / "nowhere") == (None, [])


def damage_flip(path: Path) -> None:
    file = path / checkpoint.TENSORS
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)


def damage_truncate(path: Path) -> None:
    file = path / checkpoint.TENSORS
    file.write_bytes(file.read_bytes()[:-1])


def damage_manifest_missing(path: Path) -> None:
    (path / checkpoint.MANIFEST).unlink()


def damage_manifest_cut(path: Path) -> None:
    file = path / checkpoint.MANIFEST
    file.write_bytes(file.read_bytes()[:40])


def damage_file_missing(path: Path) -> None:
    (path / checkpoint.VALUES).unlink()


def damage_everything(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


DAMAGES = [
    (damage_flip, "state.safetensors does not match its SHA-256"),
    (damage_truncate, "state.safetensors has"),
    (damage_manifest_missing, "manifest.json is missing"),
    (damage_manifest_cut, "manifest.json is not readable"),
    (damage_file_missing, "state.json is missing"),
    (damage_everything, "manifest.json is missing"),
]


@pytest.mark.parametrize(("hurt", "words"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_skipped(tmp_path: Path, hurt, words: str) -> None:
    older = checkpoint.save(tmp_path, 10, example_state(), {})
    newer = checkpoint.save(tmp_path, 20, example_state(1), {})
    hurt(newer)
    found, damaged = checkpoint.find_newest(tmp_path)
    assert found == older
    assert len(damaged) == 1 and str(newer) in damaged[0] and words in damaged[0]


@pytest.mark.parametrize(("hurt", "words"), DAMAGES)
def test_an_explicitly_named_damaged_checkpoint_is_an_error(tmp_path: Path, hurt, words: str) -> None:
    path = checkpoint.save(tmp_path, 10, example_state(), {})
    hurt(path)
    with pytest.raises(CheckpointError, match=words) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 10, example_state(), {"epoch": 1})
    chance = random.Random(0)
    noticed = 0
    for file in sorted(path.iterdir()):
        original = file.read_bytes()
        for _ in range(60):
            content = bytearray(original)
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(content)
            if checkpoint.damage(path):
                noticed += 1
            else:
                loaded = checkpoint.load(path)
                assert file.name == checkpoint.MANIFEST and same(loaded.state, example_state()) and loaded.meta == {"epoch": 1}
        file.write_bytes(original)
    assert noticed > 150


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint.load(tmp_path / "step-00000001")


def test_a_staging_folder_left_by_a_crash_is_not_a_checkpoint(tmp_path: Path) -> None:
    whole = checkpoint.save(tmp_path, 10, example_state(), {})
    left = tmp_path / f".step-00000020{checkpoint.TEMPORARY_SUFFIX}"
    whole.rename(left)
    assert checkpoint.find_newest(tmp_path) == (None, [])
    assert checkpoint.clear_leftovers(tmp_path) == [left]
    assert not left.exists()


def test_saving_over_a_leftover_and_over_the_same_step_works(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 20, example_state(), {})
    damage_flip(path)
    (tmp_path / f".step-00000020{checkpoint.TEMPORARY_SUFFIX}").mkdir()
    checkpoint.save(tmp_path, 20, example_state(1), {})
    assert same(checkpoint.load(path).state, example_state(1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000020"]


def test_pruning_keeps_the_latest_and_drops_a_course_that_was_left(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        checkpoint.save(tmp_path, step, {"x": torch.zeros(1)}, {})
    checkpoint.prune(tmp_path, newest=40, keep=2)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [30, 40]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_manifest_states_size_and_hash_of_every_file(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 10, example_state(), {})
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    assert set(manifest["files"]) == {entry.name for entry in path.iterdir()} - {checkpoint.MANIFEST}


def test_saving_fifty_megabytes_costs_less_than_a_second_of_work(tmp_path: Path) -> None:
    """The processor's seconds: how long a disk takes to say that bytes are safe is not the checkpoint's to choose."""
    state = {f"weight.{index}": torch.randn(1250, 1000) for index in range(10)}
    seconds = []
    for step in range(3):
        start = time.process_time()
        checkpoint.save(tmp_path, step, state, {})
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0, seconds
