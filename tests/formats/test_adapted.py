"""An adapter's folder opens like a model: over the base that it names or is given, and over no other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.formats.adapters import CONFIG, TOKENIZER, base_model, write_adapter, write_base

import owngpt
from owngpt.errors import ModelFolderError, UsageError
from owngpt.formats.adapted import stack_of
from owngpt.formats.folder import load_config, load_family, load_model, open_model, save_model
from owngpt.formats.gguf import save_gguf
from owngpt.formats.merging import merge_adapter
from owngpt.formats.peft import load_adapter
from owngpt.model.gpt import GPT
from owngpt.text.chat import CHATML

IDS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, another of the same shape, and an adapter over the first."""
    home = tmp_path_factory.mktemp("home")
    write_base(home / "base")
    write_base(home / "other", seed=5)
    write_adapter(home / "adapter", "../base")
    return home


def logits(*adapters: Path) -> torch.Tensor:
    """Of the base with adapters merged into it one after the other."""
    model = base_model()
    for adapter in adapters:
        merge_adapter(model, load_adapter(adapter, CONFIG))
    with torch.no_grad():
        return model.logits(IDS)


@pytest.mark.parametrize("spelling", ["beside the adapter", "absolute", "from where one stands"])
def test_an_adapter_folder_is_its_base_with_the_adapter_in_it(
    home: Path, tmp_path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    name = {"beside the adapter": "../base", "absolute": str(home / "base"), "from where one stands": "base"}[spelling]
    adapter = home / "adapter" if spelling == "beside the adapter" else write_adapter(tmp_path / "adapter", name)
    model, tokenizer = load_model(adapter)
    with torch.no_grad():
        found = model.logits(IDS)
    torch.testing.assert_close(found, logits(home / "adapter"))
    assert float((found - logits()).abs().max()) > 0.5
    assert tokenizer.vocab_size == TOKENIZER.vocab_size
    assert load_config(adapter) == CONFIG
    assert load_family(adapter).model_type == load_family(home / "base").model_type


def test_an_adapter_may_lie_over_another(home: Path, tmp_path: Path) -> None:
    second = write_adapter(tmp_path / "second", str(home / "adapter"), seed=7)
    torch.testing.assert_close(load_model(second)[0].logits(IDS), logits(home / "adapter", second))


def test_a_base_and_an_adapter_can_both_be_named(home: Path) -> None:
    model = owngpt.load(home / "base", adapter=home / "adapter")
    torch.testing.assert_close(model.logits(IDS), logits(home / "adapter"))
    plain = owngpt.load(home / "base")
    assert model.generate("The cat", temperature=0, max_new_tokens=8) != plain.generate(
        "The cat", temperature=0, max_new_tokens=8
    )


def test_what_writes_on_packed_weights_has_the_adapter_too(home: Path) -> None:
    exact = owngpt.load(home / "adapter").generate("The cat", temperature=0, max_new_tokens=3)
    packed = owngpt.load(home / "adapter", quantize="auto")
    assert packed.generate("The cat", temperature=0, max_new_tokens=3) == exact
    torch.testing.assert_close(packed.logits(IDS), logits(home / "adapter"))


def test_an_adapter_opens_over_a_gguf_file_of_its_base(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "base.gguf"
    save_gguf(file, base_model(), TOKENIZER, dtype="float32")
    model, _, _ = open_model(file, adapter=home / "adapter")
    torch.testing.assert_close(model.logits(IDS), logits(home / "adapter"), atol=1e-4, rtol=1e-4)


def test_tokenizer_and_settings_of_the_adapter_win(home: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", str(home / "base"))
    (adapter / "chat_template.jinja").write_text(CHATML)
    (adapter / "generation_config.json").write_text(json.dumps({"temperature": 0.4}))
    _, tokenizer, generation = open_model(adapter)
    assert tokenizer.chat_template == CHATML
    assert generation == {"temperature": 0.4}
    TOKENIZER.with_chat_template("{{ messages[0].content }}").save(adapter)
    assert open_model(adapter)[1].chat_template == "{{ messages[0].content }}"


def test_the_template_of_the_base_stays_where_the_adapter_has_none(home: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tokenizer=TOKENIZER.with_chat_template(CHATML))
    adapter = write_adapter(tmp_path / "adapter", "../base")
    TOKENIZER.save(adapter)
    assert open_model(adapter)[1].chat_template == CHATML
    assert base == stack_of(adapter).base.resolve()


def test_a_base_that_is_not_here_is_said_with_both_ways_out(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", "somebody/something")
    with pytest.raises(ModelFolderError, match=r"somebody/something.*owngpt pull hf:somebody/something.*--adapter"):
        owngpt.load(adapter)
    nameless = write_adapter(tmp_path / "nameless", None)
    with pytest.raises(ModelFolderError, match=r"names no base_model_name_or_path.*--adapter"):
        owngpt.load(nameless)


NO_BASES = ["", " ", "x" * 5000, "\0", ".", "..", "/", "../adapter", "hf:", "pypi:../x", "a/b/c/d", 7, ["x"], {}]


@pytest.mark.parametrize("name", NO_BASES, ids=lambda name: str(name)[:12])
def test_whatever_an_adapter_calls_its_base_ends_in_a_sentence(tmp_path: Path, name: Any) -> None:
    adapter = write_adapter(tmp_path / "adapter", name)
    with pytest.raises(ModelFolderError):
        owngpt.load(adapter)


def test_a_circle_of_adapters_ends_in_a_sentence(tmp_path: Path) -> None:
    write_adapter(tmp_path / "one", "../two")
    write_adapter(tmp_path / "two", "../one")
    with pytest.raises(ModelFolderError, match="over more than"):
        owngpt.load(tmp_path / "one")


def test_a_base_of_another_shape_is_refused_by_both_names(home: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", "their/model")
    shallow = tmp_path / "shallow"
    save_model(shallow, GPT(dataclasses.replace(CONFIG, layers=1)), TOKENIZER)
    with pytest.raises(ModelFolderError, match=r"another one \(opened over .*shallow; .*'their/model'"):
        owngpt.load(shallow, adapter=adapter)


def test_other_weights_of_the_same_shape_are_refused_by_both_names(home: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"'../base'.*whose weights are not those of .*other"):
        owngpt.load(home / "other", adapter=home / "adapter")


def test_a_copy_of_the_base_in_another_type_is_the_base(home: Path, tmp_path: Path) -> None:
    copy = write_base(tmp_path / "copy", dtype="bfloat16")
    merged = owngpt.load(copy, adapter=home / "adapter").logits(IDS)
    torch.testing.assert_close(merged, logits(home / "adapter"), atol=0.5, rtol=0.05)


def test_what_is_no_adapter_is_said(home: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"other has no adapter_config.json"):
        owngpt.load(home / "base", adapter=home / "other")
    with pytest.raises(UsageError, match="owngpt.load"):
        owngpt.evaluate(owngpt.load(home / "base"), data=[], adapter=home / "adapter")


@pytest.mark.parametrize("named", [True, False])
def test_an_export_is_a_plain_folder_with_the_merged_weights(home: Path, tmp_path: Path, named: bool) -> None:
    model = home / "base" if named else home / "adapter"
    owngpt.export(model, format="hf", output=tmp_path / "plain", adapter=home / "adapter" if named else None)
    assert not (tmp_path / "plain" / "adapter_config.json").exists()
    torch.testing.assert_close(owngpt.load(tmp_path / "plain").logits(IDS), logits(home / "adapter"))
