"""Settings from YAML: the same names as the options, checked as strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from owngpt.config.settings_file import read_settings
from owngpt.config.training import TrainConfig, merged
from owngpt.errors import UsageError


def read(folder: Path, text: str) -> dict[str, object]:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path, TrainConfig)


def test_names_may_be_spelled_as_options_or_as_fields(tmp_path):
    found = read(tmp_path, "learning-rate: 1e-3\nhidden_size: 64\nminutes: 5\ndocument-mask: true\npreset: gpt2\n")
    assert found == {"learning_rate": 0.001, "hidden_size": 64, "minutes": 5.0, "document_mask": True, "preset": "gpt2"}
    assert TrainConfig(**found).learning_rate == 0.001


def test_an_empty_file_sets_nothing(tmp_path):
    assert read(tmp_path, "# nothing yet\n") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learnin-rate: 1\n", ["learnin-rate", "learning_rate"]),
        ("steps: 1.5\n", ["steps", "1.5", "whole number"]),
        ("steps: true\n", ["steps", "whole number"]),
        ("minutes: soon\n", ["minutes", "soon", "a number"]),
        ("optimizer: sgd\n", ["optimizer", "sgd", "muon, adamw"]),
        ("- a\n- b\n", ["name: value", "list"]),
        ("a: [1\n", ["not YAML"]),
        ("!!python/object/apply:os.system ['true']\n", ["not YAML"]),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_dial_on_the_command_line_replaces_the_dial_of_the_file():
    assert merged({"minutes": 10.0, "seed": 3}, {"steps": 5}) == {"seed": 3, "steps": 5}
    assert merged({"minutes": 10.0, "seed": 3}, {"seed": 4}) == {"minutes": 10.0, "seed": 4}
