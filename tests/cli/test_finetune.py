"""`owngpt finetune`: what is printed, as words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.finetune.small_runs import chats, write_base, write_rows

from owngpt.cli.main import main

SHAPE = ["--context-length", "128", "--batch-size", "2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_base(tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_rows(tmp_path_factory.mktemp("rows") / "faq.jsonl", chats(16)))


def test_a_run_prints_json_and_nothing_else(base, rows, tmp_path, capsys):
    folder = str(tmp_path / "out put")
    assert main(["finetune", base, rows, "-o", folder, "--steps", "2", *SHAPE, "--quiet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["output"], result["method"]) == (folder, "sft")
    assert result["training"]["step"] == 2
    assert result["plan"]["recipe"]["lora"]["rank"] == 16
    assert main(["finetune", "--resume", "-o", folder, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "report.md" in out and f"owngpt chat '{folder}'" in out and f"owngpt export '{folder}' --merge" in out


def test_a_dry_run_prints_the_plan_and_touches_nothing(base, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", base, rows, "--full", "--epochs", "2", *SHAPE, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "16 chats" in captured.out and "trained: the model itself" in captured.out and "for 2 passes as given" in captured.out
    assert captured.err == ""
    assert not list(tmp_path.iterdir())


def test_examples_are_shown(base, rows, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["finetune", base, rows, "--show", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("ids that serving reads before it answers") == 2
    assert "table: yes." in captured.out
    assert "16 chats" in captured.err
    assert main(["finetune", base, rows, "--show", "1", "--json", "--quiet"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["examples"]) == 1 and shown["sentence"] == "16 chats, 2.0 turns each"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no model: name a model and examples"),
        (["{base}"], "nothing to learn from: name a model and examples"),
        (["{base}", "{rows}", "--lora", "--full"], "--full"),
        (["{base}", "{rows}", "--method", "magic"], "magic"),
        (["{base}", "{rows}", "--rank", "0"], "--rank is 0, but must be at least 1"),
        (["--show", "3"], "no model"),
        (["--resume"], "--resume does not say which run to go on with"),
    ],
)
def test_wrong_usage_is_one_sentence(base, rows, arguments, said, capsys):
    assert main(["finetune", *(argument.format(base=base, rows=rows) for argument in arguments)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err


def test_the_help_names_the_pairs_of_flags(capsys):
    assert main(["finetune", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--lora --full" in out and "--pack --no-pack" in out and "[default: 0]" in out


def test_settings_may_come_from_a_file(base, rows, tmp_path: Path, capsys):
    settings = tmp_path / "settings.yaml"
    settings.write_text("epochs: 2\nlearning-rate: 1e-3\nrank: 2\n", encoding="utf-8")
    assert main(["finetune", base, rows, "--config", str(settings), "--steps", "3", *SHAPE, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["course"]["steps"], plan["course"]["learning_rate"], plan["recipe"]["lora"]["rank"]) == (3, 1e-3, 2)
