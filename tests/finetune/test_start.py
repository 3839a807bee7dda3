"""What a person gives that does not work is said in one sentence, with the value and the fix, before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.finetune.small_runs import chats, labelled, preferences, write_base, write_rows

from owngpt.config.finetuning import FinetuneConfig
from owngpt.errors import DataError, ModelFolderError, OwnGPTError, UsageError
from owngpt.finetune.look import look
from owngpt.finetune.start import finetune


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "faq.jsonl", chats(12))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "sgd"}, "--method is 'sgd', but must be one of: sft, dpo, ipo, orpo, classify"),
        ({"minutes": 1, "steps": 2}, "--minutes and --steps are given together"),
        ({"lora": False, "rank": 8}, "--rank is of adapters, and --full trains the model itself; leave one of them out"),
        ({"lora_dropout": 1.0}, "--lora-dropout is 1.0, but must be from 0 to less than 1"),
        ({"held_out": 0.9}, "--held-out is 0.9"),
        ({"replay": 1.5}, "--replay is 1.5"),
        ({"replay_from": "x", "replay": 0.0}, "--replay 0 says none of it"),
        ({"columns": "prompt"}, "it takes name=column pairs"),
        ({"overflow": "cut"}, "--overflow is 'cut', but must be one of: drop, split, error"),
        ({"validation": "x", "held_out": 0.1}, "--validation and --held-out are given together"),
        ({"method": "sft", "beta": 0.2}, "--beta is of dpo, ipo and orpo, but the method is sft"),
        ({"learning_rate": 0.0}, "for example --learning-rate 0.0002"),
        ({"steps": "3"}, "--steps is '3', but must be a whole number"),
        ({"steps": 2.5}, "--steps is 2.5, but must be a whole number"),
        ({"minutes": "soon"}, "--minutes is 'soon', but must be a number"),
        ({"minutes": 10**400}, "but must be a number that is not so large"),
        ({"columns": 5}, "--columns is 5, but must be a text"),
        ({"learn_rate": 0.1}, "--learn-rate is unknown; the options of `owngpt finetune` are method, lora"),
        ({"context_length": 9999, "steps": 1}, "context_length 9999 is longer than the model's 256; use --context-length 256"),
        ({"target_modules": "q_proj,nowhere", "steps": 1}, "--target-modules names nowhere, but this model's matrices are"),
        ({"method": "dpo", "steps": 1}, "--method"),
        ({"system": "x", "layout": "sharegpt"}, "layout"),
        ({"replay": 0.1, "replay_from": "nowhere.txt", "steps": 1}, "--replay-from nowhere.txt"),
    ],
)
def test_options_that_do_not_work_name_the_value_and_the_fix(
    base: Path, rows: Path, tmp_path: Path, options: dict[str, Any], said: str
):
    with pytest.raises(OwnGPTError) as error:
        finetune(base, rows, output=tmp_path / "out", quiet=True, **options)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"messages": [{"role": "user", "content": "hi"}]}'], ("rows.jsonl", "line 4")),
        (['{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]}'], ("rows.jsonl", "line 4")),
        (['{"messages": [{"role": "boss", "content": "hi"}, {"role": "assistant", "content": "x"}]}'], ("boss", "line 4")),
        (['{"messages": [{"role": "user", '], ("rows.jsonl", "line 4")),
        (['{"prompt": "a", "completion": "b"}'], ("rows.jsonl", "4")),
    ],
)
def test_bad_rows_are_named_and_left_out_only_where_that_was_said(
    base: Path, tmp_path: Path, lines: list[str], said: tuple[str, ...]
):
    file = write_rows(tmp_path / "rows.jsonl", chats(3))
    file.write_text(file.read_text() + "\n".join(lines) + "\n" + write_rows(tmp_path / "more", chats(9)).read_text())
    with pytest.raises(OwnGPTError) as error:
        finetune(base, file, output=tmp_path / "out", quiet=True, steps=1)
    assert all(part in str(error.value) for part in said), str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_row_beyond_the_context_is_an_error_unless_said_otherwise(base: Path, tmp_path: Path):
    row = {"messages": [{"role": "user", "content": "long " * 25_000}, {"role": "assistant", "content": "ok"}]}
    file = write_rows(tmp_path / "rows.jsonl", [*chats(8), row])
    with pytest.raises(DataError, match=r"rows.jsonl:9: .* tokens, more than the context of 256.*--overflow drop or split"):
        finetune(base, file, output=tmp_path / "out", quiet=True, steps=1, held_out=0)
    plan = finetune(base, file, quiet=True, steps=1, held_out=0, skip_bad=True, dry_run=True)
    assert plan.data["train"]["dropped"]["count"] == 1
    assert plan.plan["examples"] == 8


def test_held_out_rows_that_cannot_be_used_are_said_too(base: Path, rows: Path, tmp_path: Path):
    long = {"messages": [{"role": "user", "content": "long " * 25_000}, {"role": "assistant", "content": "ok"}]}
    others = write_rows(tmp_path / "others.jsonl", [*chats(3), long])
    with pytest.raises(DataError, match=r"others.jsonl:4: .* tokens, more than the context of 256.*--overflow drop or split"):
        finetune(base, rows, quiet=True, steps=1, validation=str(others), dry_run=True)
    data = finetune(base, rows, quiet=True, steps=1, validation=str(others), overflow="split", dry_run=True).data
    assert (data["held_out"]["examples"], data["held_out"]["dropped"]["count"]) == (3, 1)
    assert data["shared_prompts"] == 3
    assert any("others.jsonl: 4 chats" in note for note in data["notes"])
    assert any("3 of 4 examples of" in note and "ask what is learned" in note for note in data["notes"])


def test_a_held_out_label_that_is_not_learned_is_named(base: Path, tmp_path: Path):
    learned = write_rows(tmp_path / "learned.jsonl", labelled(8))
    others = write_rows(tmp_path / "others.jsonl", [*labelled(3), {"text": "odd one", "label": "?"}])
    with pytest.raises(DataError, match=r"others.jsonl:4: unknown label '\?'; the training rows have: \+, -"):
        finetune(base, learned, quiet=True, steps=1, validation=str(others), dry_run=True)
    data = finetune(base, learned, quiet=True, steps=1, validation=str(others), skip_bad=True, dry_run=True).data
    assert data["held_out"]["examples"] == 3
    assert any(note.startswith("1 more rows refused") and "others.jsonl:4" in note for note in data["notes"])


def test_labels_and_what_they_are_seen_once(base: Path, tmp_path: Path):
    single = write_rows(tmp_path / "rows.jsonl", [*labelled(8), {"text": "odd one", "label": "?"}])
    with pytest.raises(DataError, match=r"label '\?' is seen once"):
        finetune(base, single, quiet=True, steps=1, dry_run=True)
    alike = write_rows(tmp_path / "alike.jsonl", [{"text": f"text {n}", "label": "a"} for n in range(8)])
    with pytest.raises(DataError, match="every row has the label 'a'; give rows of at least two labels"):
        finetune(base, alike, quiet=True, steps=1, dry_run=True)


def test_the_method_follows_from_the_rows_and_others_are_refused(base: Path, tmp_path: Path):
    files = {
        "sft": write_rows(tmp_path / "chats.jsonl", chats(8)),
        "dpo": write_rows(tmp_path / "preferences.jsonl", preferences(8)),
        "classify": write_rows(tmp_path / "labels.jsonl", labelled(8)),
    }
    for method, file in files.items():
        assert finetune(base, file, quiet=True, steps=1, dry_run=True).method == method
    with pytest.raises(UsageError, match="--method sft learns from answers, but these rows hold preferences; use --method dpo"):
        finetune(base, files["dpo"], quiet=True, steps=1, method="sft", dry_run=True)
    with pytest.raises(UsageError, match="--replay mixes text between answers to learn, and the method is dpo"):
        finetune(base, files["dpo"], quiet=True, steps=1, replay=0.1, dry_run=True)


def test_models_and_sources_that_are_not_there(base: Path, rows: Path, tmp_path: Path):
    with pytest.raises(ModelFolderError, match="there is no folder nowhere/model"):
        finetune("nowhere/model", rows, output=tmp_path / "out", quiet=True)
    with pytest.raises(OwnGPTError, match="nowhere.jsonl"):
        finetune(base, "nowhere.jsonl", output=tmp_path / "out", quiet=True, steps=1)
    with pytest.raises(UsageError, match="no model"):
        finetune(None, rows)
    with pytest.raises(UsageError, match="nothing to learn from"):
        finetune(base, [])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="letter.txt"):
        finetune(base, rows, output=tmp_path / "taken", quiet=True, steps=1)


def test_a_resumed_run_must_be_one(tmp_path: Path):
    with pytest.raises(UsageError, match="--resume does not say which run"):
        finetune(resume=True)
    with pytest.raises(UsageError, match="holds no run to resume"):
        finetune(resume=True, output=tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("sources: [a]\nsettings: {}\nplan: {}\n")
    with pytest.raises(UsageError, match="is of `owngpt train`; go on with it by that"):
        finetune(resume=True, output=tmp_path)


def test_torchrun_is_refused(base: Path, rows: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="WORLD_SIZE is 2, but a fine-tuning runs in one process; start it without torchrun"):
        finetune(base, rows, steps=1)


def test_python_may_give_columns_and_modules_as_it_likes(base: Path, tmp_path: Path):
    file = write_rows(tmp_path / "rows.jsonl", [{"frage": f"wie {n}?", "antwort": "so."} for n in range(8)])
    result = finetune(
        base, file, quiet=True, steps=1, dry_run=True, columns={"prompt": "frage", "completion": "antwort"},
        target_modules=["q_proj", "v_proj"],
    )  # fmt: skip
    assert result.plan["recipe"]["lora"]["targets"] == ("q_proj", "v_proj")
    assert FinetuneConfig(columns="prompt=frage, completion=antwort").column_names() == {
        "prompt": "frage",
        "completion": "antwort",
    }


def test_examples_are_looked_at_as_they_would_be_learned(base: Path, rows: Path):
    looked = look(base, [rows], 2, system="Be brief {{ always }}.")
    assert len(looked.examples) == 2
    first = looked.examples[0]
    text = "".join(piece.text for piece in first.sequences[0])
    assert text.startswith("<|im_start|>system\nBe brief {{ always }}.<|im_end|>\n<|im_start|>user\n")
    assert [piece.text for piece in first.sequences[0] if piece.learned] == ["table: yes.<|im_end|>"]
    assert looked.to_dict()["method"] == "sft"
