"""The record of a fine-tuning: whose it is, and what it leads to again."""

from __future__ import annotations

from pathlib import Path

import pytest

from owngpt.config.finetuning import FinetuneConfig, as_options
from owngpt.config.run_record import RunRecord, read_configuration
from owngpt.errors import CheckpointError, UsageError

PLAN = {
    "recipe": {"method": "sft", "lora": {"rank": 8}, "optimizer": {"matrix_rate": 2e-4}},
    "shape": {"context_length": 128, "batch_size": 2, "accumulation": 3, "pack": True},
}


def record(**settings: object) -> RunRecord:
    return RunRecord(["faq.jsonl"], {"rank": 8, **settings}, PLAN, verb="finetune", model="smollm2-135m")


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = record(minutes=2.0).write(tmp_path / "run.yaml")
    assert RunRecord.read(tmp_path / "run.yaml", "finetune") == written
    assert written.model == "smollm2-135m"


def test_it_leads_to_the_same_run_again(tmp_path: Path) -> None:
    record().write(tmp_path / "run.yaml")
    model, sources, settings = read_configuration(tmp_path / "run.yaml", "finetune")
    assert (model, sources) == ("smollm2-135m", ["faq.jsonl"])
    assert settings == {
        "method": "sft", "lora": True, "learning_rate": 2e-4, "batch_size": 2, "accumulation": 3, "context_length": 128,
        "minutes": 10.0, "rank": 8,
    }  # fmt: skip
    FinetuneConfig(**settings)


def test_each_verb_goes_on_with_its_own_runs(tmp_path: Path) -> None:
    record().write(tmp_path / "run.yaml")
    with pytest.raises(UsageError, match="is of `owngpt finetune`; go on with it by that"):
        RunRecord.read(tmp_path / "run.yaml")
    with pytest.raises(UsageError, match="it is of `owngpt finetune`"):
        read_configuration(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text((tmp_path / "run.yaml").read_text().replace("verb: finetune", "verb: distil"))
    with pytest.raises(CheckpointError, match="its verb is 'distil', not one of train, finetune"):
        RunRecord.read(tmp_path / "run.yaml", "finetune")


def test_a_record_without_a_verb_is_a_training(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("sources: [a]\nsettings: {layers: 2}\nplan: {}\n")
    assert RunRecord.read(tmp_path / "run.yaml").verb == "train"


def test_a_plan_that_lacks_something_is_said(tmp_path: Path) -> None:
    RunRecord(["a"], {}, {"recipe": {}}, verb="finetune", model="m").write(tmp_path / "run.yaml")
    with pytest.raises(UsageError, match="its plan lacks 'shape'"):
        read_configuration(tmp_path / "run.yaml", "finetune")


def test_lists_and_mappings_become_the_words_of_the_command_line() -> None:
    given = as_options({"columns": {"prompt": "frage"}, "target_modules": ["q_proj", "v_proj"], "rank": 4})
    assert given == {"columns": "prompt=frage", "target_modules": "q_proj,v_proj", "rank": 4}
    assert FinetuneConfig(**given).target_names == ("q_proj", "v_proj")
