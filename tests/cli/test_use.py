"""`owngpt generate`, `eval` and `chat` with a small real model."""

from __future__ import annotations

import io
import json
import math
import shutil

import pytest
import torch

from owngpt.cli.main import main
from owngpt.formats.folder import save_model
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.chat import CHATML
from owngpt.text.training import train_tokenizer

TEXT = "The cat sat on the mat. 猫坐在垫子上。\n" * 60


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = train_tokenizer([TEXT], kind="bpe", vocab_size=320)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=64,
        hidden_size=32,
        layers=2,
        heads=2,
        key_value_heads=1,
        head_size=16,
        intermediate_size=64,
    )
    save_model(folder, GPT(config, generator=torch.Generator().manual_seed(0)), tokenizer, card=None, generation=None)
    return str(folder)


def test_generate_json_is_one_object_with_text_and_reason(model_folder, capsys):
    options = ["--prompt", "The cat", "--max-new-tokens", "8", "--seed", "1", "--json"]
    assert main(["generate", model_folder, *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompt"] == "The cat"
    assert [set(generation) >= {"text", "token_ids", "stop_reason"} for generation in result["generations"]] == [True]
    assert len(result["generations"][0]["token_ids"]) <= 8


def test_the_same_seed_writes_the_same_text(model_folder, capsys):
    outputs = []
    for _ in range(2):
        assert main(["generate", model_folder, "--prompt", "猫", "--max-new-tokens", "12", "--seed", "7"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("猫")


def test_several_sequences_are_told_apart(model_folder, capsys):
    options = ["--prompt", "The", "--max-new-tokens", "4", "--num-return-sequences", "3"]
    assert main(["generate", model_folder, *options]) == 0
    out = capsys.readouterr().out
    assert out.count(" of 3") == 3


def test_a_prompt_may_be_piped_in(model_folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The mat"))
    assert main(["generate", model_folder, "--max-new-tokens", "2", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("The mat")


def test_eval_json_holds_the_score_and_its_conditions(model_folder, tmp_path, capsys):
    data = tmp_path / "held-out.txt"
    data.write_text(TEXT, encoding="utf-8")
    assert main(["eval", model_folder, "--data", str(data), "--stride", "16", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert {"bits_per_byte", "perplexity", "loss", "tokens", "bytes", "stride"} <= set(score)
    assert score["bytes"] == len(TEXT.encode("utf-8"))
    assert score["stride"] == 16
    assert score["perplexity"] == pytest.approx(math.exp(score["loss"]))
    assert score["bits_per_byte"] == pytest.approx(score["loss"] * score["tokens"] / math.log(2) / score["bytes"])


def test_eval_for_people_names_the_stride(model_folder, tmp_path, capsys):
    data = tmp_path / "held-out.txt"
    data.write_text(TEXT, encoding="utf-8")
    assert main(["eval", model_folder, "--data", str(data)]) == 0
    out = capsys.readouterr().out
    assert "bits per byte" in out
    assert "stride" in out


def test_eval_tells_a_pipe_how_far_it_is(model_folder, tmp_path, capsys, monkeypatch):
    data = tmp_path / "held-out.txt"
    data.write_text(TEXT, encoding="utf-8")
    assert main(["eval", model_folder, "--data", str(data), "--json"]) == 0
    assert capsys.readouterr().err == ""  # it took less than ten seconds
    monkeypatch.setattr("owngpt.cli.output.PLAIN_SECONDS", 0.0)
    assert main(["eval", model_folder, "--data", str(data), "--json"]) == 0
    captured = capsys.readouterr()
    tokens = json.loads(captured.out)["tokens"]
    assert captured.err.splitlines()[-1] == f"{tokens:,} tokens scored"


def test_a_missing_file_to_score_is_one_sentence(model_folder, tmp_path, capsys):
    assert main(["eval", model_folder, "--data", str(tmp_path / "absent.txt"), "--json"]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "absent.txt" in captured.err
    assert captured.err.count("\n") == 1


def test_chat_continues_text_until_the_input_ends(model_folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat\n\n/reset\nThe mat\n/quit\nnever read\n"))
    assert main(["chat", model_folder, "--max-new-tokens", "3", "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    lines = captured.out
    assert lines.startswith("The cat")
    assert "The mat" in lines
    assert "never read" not in lines
    assert "/quit" in captured.err


def test_a_line_longer_than_the_context_does_not_end_the_chat(model_folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("cat " * 200 + "\nThe mat\n"))
    assert main(["chat", model_folder, "--max-new-tokens", "3", "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("The mat")
    assert "context of 64" in captured.err
    assert "/reset" in captured.err


def test_a_conversation_that_outgrows_the_context_can_start_over(model_folder, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(model_folder, tmp_path / "templated")
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat sat.\n" * 12 + "/reset\nThe mat\n"))
    assert main(["chat", str(folder), "--max-new-tokens", "8", "--temperature", "0"]) == 0
    err = capsys.readouterr().err
    assert "context of 64" in err.partition("Started over.")[0]
    assert "context of 64" not in err.partition("Started over.")[2]


def test_what_is_piped_in_is_bounded_and_must_be_text(model_folder, capsys, monkeypatch):
    for given, words in ((b"caf\xe9", "not utf-8 text (byte 0xe9)"), (b"x" * (2**24 + 1), "more than 16,777,216 characters")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        assert main(["generate", str(model_folder)]) == 2
        assert words in capsys.readouterr().err


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_shown(model_folder, capsys):
    assert main(["generate", model_folder, "--prompt", "cat " * 200]) == 2
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path, capsys):
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 1
    err = capsys.readouterr().err
    assert str(tmp_path) in err
    assert err.count("\n") == 1


def test_sampled_json_is_reproducible_with_several_sequences_and_stops(model_folder, capsys):
    options = ["--prompt", "The cat", "--max-new-tokens", "12", "--num-return-sequences", "3", "--seed", "5", "--json"]
    results = []
    for extra in ([], [], ["--stop", "a", "--stop", "猫"]):
        assert main(["generate", model_folder, *options, *extra]) == 0
        results.append(json.loads(capsys.readouterr().out)["generations"])
    assert results[0] == results[1]
    assert len({tuple(generation["token_ids"]) for generation in results[0]}) == 3
    assert not any("a" in generation["text"] or "猫" in generation["text"] for generation in results[2])
    for free, stopped in zip(results[0], results[2], strict=True):
        assert free["text"].startswith(stopped["text"])
