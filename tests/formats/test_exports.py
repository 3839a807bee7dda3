"""A model goes out as a folder, as a GGUF file and for Ollama; what is there already stays there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import owngpt
from owngpt.cli.main import main
from owngpt.errors import UsageError
from owngpt.formats.folder import load_model, save_model
from owngpt.formats.ollama import LAYOUTS, modelfile_of
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.chat import CHATML, ChatTemplate
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

CONFIG = GPTConfig(
    vocab_size=288, context_length=64, hidden_size=32, layers=2, heads=2, key_value_heads=1, head_size=16, intermediate_size=64
)
TOKENIZER = train_tokenizer([], kind="byte").with_chat_template(CHATML)
LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{% set first = '' %}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (first if loop.first else '') }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + '</s>' }}{% else %}{{ raise_exception('no system prompt') }}{% endif %}"
    "{% endfor %}"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = GPT(CONFIG, generator=torch.Generator().manual_seed(1))
    save_model(tmp_path / "model", model, TOKENIZER, generation={"do_sample": True, "temperature": 0.7})
    return tmp_path / "model"


def test_a_gguf_writes_the_same_text(folder: Path, tmp_path: Path) -> None:
    written = owngpt.export(folder, format="gguf", output=tmp_path / "out.gguf", dtype="f32")
    assert written.files == (tmp_path / "out.gguf",)
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0}
    again = owngpt.load(tmp_path / "out.gguf")
    assert again.generate("abc", **options) == owngpt.load(folder).generate("abc", **options)
    assert owngpt.evaluate(again, data=folder / "config.json") == owngpt.evaluate(folder, data=folder / "config.json")


def test_a_gguf_becomes_a_folder_with_the_same_tensors(folder: Path, tmp_path: Path) -> None:
    owngpt.export(folder, format="gguf", output=tmp_path / "out.gguf", dtype="float32")
    owngpt.export(tmp_path / "out.gguf", format="hf", output=tmp_path / "again")
    first, second = load_model(folder), load_model(tmp_path / "again")
    for name, value in first[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[name], value), name
    assert second[1].chat_template == CHATML
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["temperature"] == pytest.approx(0.7)


def test_a_folder_keeps_its_type_unless_told(folder: Path, tmp_path: Path) -> None:
    assert owngpt.export(folder, format="hf", output=tmp_path / "same").dtype == "float32"
    assert owngpt.export(folder, format="hf", output=tmp_path / "half", dtype="bfloat16").dtype == "bfloat16"
    assert owngpt.export(tmp_path / "half", format="hf", output=tmp_path / "still").dtype == "bfloat16"


def test_what_is_there_stays_without_force(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        owngpt.export(folder, format="gguf", output=output)
    assert output.read_text() == "mine"
    owngpt.export(folder, format="gguf", output=output, force=True)
    assert output.read_bytes()[:4] == b"GGUF"
    with pytest.raises(UsageError, match="already holds"):
        owngpt.export(folder, format="hf", output=folder)
    with pytest.raises(UsageError, match="ends in .gguf"):
        owngpt.export(folder, format="gguf", output=tmp_path / "folder")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(UsageError, match="diary.txt"):
        owngpt.export(folder, format="ollama", output=tmp_path / "notes", force=True)


def test_ollama_gets_a_model_a_template_stops_and_a_prompt(folder: Path, tmp_path: Path) -> None:
    written = owngpt.export(folder, format="ollama", output=tmp_path / "ollama")
    assert [file.name for file in written.files] == ["model.gguf", "Modelfile"]
    text = (tmp_path / "ollama" / "Modelfile").read_text()
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """')
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert owngpt.load(tmp_path / "ollama").config == CONFIG  # the Modelfile does not disturb


def go(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """Go's text/template for what our templates use: range, if, else if, eq, ne, not, and, slice, len."""
    pieces = re.split(r"{{ ?(.*?) ?}}", template)
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    source, depth = ["out = []"], 0

    def value(text: str) -> str:
        if found := re.fullmatch(r'(eq|ne) \.Role ("\w+")', text):
            return f"m['role'] {'==' if found[1] == 'eq' else '!='} {found[2]}"
        if found := re.fullmatch(r"not \((.*)\)", text):
            return f"not ({value(found[1])})"
        if found := re.fullmatch(r"and (\S+) \((.*)\)", text):
            return f"({value(found[1])}) and ({value(found[2])})"
        if text.startswith("not $"):
            return f"not {value(text[4:])}"
        if found := re.fullmatch(r"eq \$i (\d)", text):
            return f"i == {found[1]}"
        return {"$last": "last", "$.System": "system"}[text]

    for index, piece in enumerate(pieces):
        pad = " " * depth
        if index % 2 == 0:
            source.append(f"{pad}out.append({piece!r})")
        elif piece == "range $i, $_ := .Messages":
            source.append(f"{pad}for i, m in enumerate(messages):")
            depth += 1
        elif piece == "$last := eq (len (slice $.Messages $i)) 1":
            source.append(f"{pad}last = i == len(messages) - 1")
        elif piece == ".Content":
            source.append(f"{pad}out.append(m['content'])")
        elif piece == "end":
            depth -= 1
        elif piece.startswith("else if "):
            source.append(f"{pad[1:]}elif {value(piece[8:])}:")
        else:
            assert piece.startswith("if "), piece
            source.append(f"{pad}if {value(piece[3:])}:")
            depth += 1
    space: dict[str, Any] = {"messages": messages, "system": system}
    exec("\n".join(source), space)  # our own template, in a test
    return "".join(space["out"])


CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Ah\n\nso"}],
    [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Fly"},
        {"role": "user", "content": "Why"},
    ],
]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "name"), [(CHATML, "ChatML"), (LLAMA3, "Llama 3"), (GEMMA, "Gemma"), (MISTRAL, "Mistral"), (DEFAULT_SYSTEM, "")]
)
def test_the_go_template_says_what_the_models_own_says(template: str, name: str) -> None:
    tokenizer = TOKENIZER.with_chat_template(template)
    found = modelfile_of(tokenizer)
    assert found.template == next(layout for layout in LAYOUTS if layout.name == (name or "ChatML")).in_go()
    assert found.system == (None if name else "Be kind.")
    for messages in CONVERSATIONS:
        if name == "Mistral" and messages[0]["role"] == "system":
            continue  # its own template refuses it
        added = [] if found.system is None or messages[0]["role"] == "system" else [{"role": "system", "content": found.system}]
        own = ChatTemplate.of(tokenizer).render(messages, add_generation_prompt=True)
        assert go(found.template, [*added, *messages]) == own


def test_an_unknown_template_is_left_to_ollama_and_said(tmp_path: Path) -> None:
    model = GPT(CONFIG, generator=torch.Generator().manual_seed(1))
    odd = TOKENIZER.with_chat_template("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}")
    save_model(tmp_path / "odd", model, odd)
    written = owngpt.export(tmp_path / "odd", format="ollama", output=tmp_path / "out")
    assert "TEMPLATE" not in (tmp_path / "out" / "Modelfile").read_text()
    assert "Ollama will look for one" in written.notes[0]


def test_a_model_without_a_template_continues_text() -> None:
    plain = Tokenizer(train_tokenizer([], kind="byte")._with_special, settings=TOKENIZER.settings)
    assert modelfile_of(plain).template == "{{ .Prompt }}"


def test_the_command_prints_files_or_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(folder), "--format", "gguf", "-o", str(tmp_path / "a.gguf"), "--dtype", "q4_0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == [str(tmp_path / "a.gguf")]
    assert found["dtype"] == "q4_0"
    assert main(["export", str(folder), "--format", "ollama", "-o", str(tmp_path / "o")]) == 0
    shown = capsys.readouterr()
    assert "Modelfile (" in shown.out
    assert "ollama create" in shown.err
    assert main(["export", str(folder), "--format", "gguf", "-o", str(tmp_path / "a.gguf")]) == 2
    assert "--force" in capsys.readouterr().err
