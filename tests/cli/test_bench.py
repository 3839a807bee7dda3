"""`owngpt bench` on a small real model: what is measured is real, what is asked wrongly is one sentence."""

from __future__ import annotations

import json

import pytest
import torch

from owngpt.bench.side import installed
from owngpt.cli.main import main
from owngpt.formats.folder import save_model
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.training import train_tokenizer

TEXT = "The cat sat on the mat. 猫坐在垫子上。\n" * 60


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = train_tokenizer([TEXT], kind="bpe", vocab_size=320)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context_length=256, hidden_size=64, layers=2, heads=2, key_value_heads=1, head_size=32,
        intermediate_size=96,
    )  # fmt: skip
    save_model(folder, GPT(config, generator=torch.Generator().manual_seed(0)), tokenizer, card=None, generation=None)
    return str(folder)


def test_json_has_every_part_with_the_median_of_real_measurements(model_folder, capsys):
    parts = "prefill,decode,loads,prefix,arrival,idle,memory"
    assert main(["bench", model_folder, "--quick", "--rounds", "2", "--part", parts, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["failures"] == []
    assert set(result["parts"]) == set(parts.split(","))
    prefill = result["parts"]["prefill"]["owngpt bf16"]["tokens_per_second"]
    assert prefill["min"] <= prefill["median"] <= prefill["max"]
    assert len(prefill["values"]) == 2
    assert prefill["min"] > 0
    assert set(result["parts"]["decode"]) == {"1", "4"}
    assert result["parts"]["decode"]["4"]["owngpt bf16"]["tokens_per_second"]["median"] > 0
    assert result["parts"]["idle"]["owngpt bf16"]["cpu"]["median"] < 0.5
    assert result["parts"]["memory"]["owngpt bf16"]["resident"]["median"] > 50e6  # a Python with torch in it
    assert result["parts"]["arrival"]["owngpt bf16"]["p99"]["median"] > 0
    assert result["sides"]["owngpt bf16"]["weight_bytes"] > 0
    assert min(result["read_bandwidth"]) > 1e6


def test_people_get_tables_on_stdout_and_progress_on_stderr(model_folder, capsys):
    assert main(["bench", model_folder, "--quick", "--part", "decode"]) == 0
    captured = capsys.readouterr()
    assert "batch 4" in captured.out
    assert "Weights read at batch 1" in captured.out
    assert "warming up" in captured.err
    assert "warming up" not in captured.out


@pytest.mark.slow
def test_a_start_without_caches_is_measured_beside_one_with_them(model_folder, capsys):
    assert main(["bench", model_folder, "--quick", "--part", "start", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    start = result["parts"]["start"]["owngpt bf16"]
    assert start["warm"]["median"] > 0.1
    assert start["cold"]["median"] > 0.1
    assert result["sides"]["owngpt bf16"]["settings"]


@pytest.mark.slow
@pytest.mark.skipif(not installed("transformers"), reason="transformers is not installed")
def test_a_peer_runs_the_same_work_in_its_own_process(model_folder, capsys):
    options = ["--quick", "--part", "prefill,decode", "--vs", "transformers", "--json"]
    assert main(["bench", model_folder, *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["failures"] == []
    decode = result["parts"]["decode"]["1"]
    assert set(decode) == {"owngpt bf16", "transformers bf16"}
    assert all(figures["tokens_per_second"]["median"] > 0 for figures in decode.values())


@pytest.mark.skipif(installed("vllm"), reason="vLLM is installed here")
def test_a_peer_that_is_not_installed_is_left_out_and_named(model_folder, capsys):
    assert main(["bench", model_folder, "--quick", "--part", "prefill", "--vs", "vllm", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["left_out"] == ["vllm"]
    assert list(result["sides"]) == ["owngpt bf16"]
    assert "vllm is left out" in captured.err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--vs", "ollama"], "transformers"),
        (["--weights", "int3"], "int4"),
        (["--part", "speed"], "prefill"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_what_is_unknown_is_refused_with_what_there_is(model_folder, capsys, options, word):
    assert main(["bench", model_folder, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert word in captured.err
    assert captured.err.count("\n") == 1
