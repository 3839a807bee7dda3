"""The page, the numbers and the pictures of a run that really took place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_report import PlainRenderer, completions, learn, network, store_of, tokenizer

from owngpt.finetune.report.labels import Confusion, Guess
from owngpt.finetune.report.measure import measure
from owngpt.finetune.report.page import _cell
from owngpt.finetune.report.pictures import draw_confusion
from owngpt.finetune.report.write import Report, write_report


def write_metrics(file: Path) -> None:
    lines = []
    for step in range(1, 121):
        lines.append({"split": "train", "step": step, "epoch": step / 6, "loss": 5 / step})
        if step % 20 == 0:
            lines.append({"split": "validation", "step": step, "epoch": step / 6, "loss": 5 / step + 1.0})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("model")
    words = tokenizer()
    model, renderer, examples = network(words), PlainRenderer(words), completions(64)
    held_out, train = examples[:16], examples[16:]
    scored = store_of(renderer, held_out)
    before = measure(model, words, renderer, held_out, scored, seconds=None, seed=1)
    learn(model.train(), store_of(renderer, train), 120)
    after = measure(model, words, renderer, held_out, scored, seconds=None, seed=1)
    write_metrics(folder / "metrics.jsonl")
    return write_report(
        folder, before=before, after=after, curve=folder / "metrics.jsonl",
        data={"sentence": "48 completions", "train": {"examples": 48, "tokens": 700, "learned": 300}},
        plan={"learning_rate": 3e-3, "lora": None, "reasons": ["rows: 8"]}, method="sft",
    )  # fmt: skip


def test_what_was_learned_and_what_was_forgotten_is_seen(report: Report) -> None:
    for name, least in (("exact match", 0.5), ("chrF", 0.5), ("stop rate", 0.9)):
        line = report.comparison.line(name)
        assert line is not None and line.after >= least > line.before
    loss = report.comparison.line("loss")
    assert loss is not None and loss.after < 0.2 * loss.before and loss.wins == 16
    assert {concern.name for concern in report.concerns} == {"forgetting", "few examples", "few held-out examples"}
    assert report.sentence().startswith("loss 5.")


def test_the_page_shows_ten_prompts_side_by_side_and_its_pictures_exist(report: Report) -> None:
    text = report.page.read_text(encoding="utf-8")
    assert text.count("| before | after | the owner's own |") == 10
    assert "- **forgetting**: " in text and "- rows: 8" in text
    pictures = [part.split(")")[0] for part in text.split("](")[1:]]
    assert pictures == ["report/scores.png", "report/loss.png"]
    for name in pictures:
        with Image.open(report.folder / name) as picture:
            assert picture.width > 600 and len(picture.convert("L").getcolors()) > 10


def test_the_numbers_are_json_that_other_programs_read(report: Report) -> None:
    values = json.loads(
        (report.folder / "report.json").read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name)
    )
    assert values == report.values
    assert values["comparison"]["gained"][0]["name"] == "loss"
    assert len(values["after"]["answers"]) == 16 and values["warnings"][0]["change"]


def test_nothing_that_a_model_writes_is_markup() -> None:
    shown = _cell("<script>alert(1)</script> | **bold** `code` [x](y)\nsecond ![p](q)")
    assert not set(shown.replace("<br>", "")) & set("<>|*`[]")
    assert "<br>" in shown and _cell("it's #1") == "it's #1" and len(_cell("x" * 5000)) < 1300


def test_a_report_without_anything_held_out_is_still_a_report(report: Report, tmp_path: Path) -> None:
    words = tokenizer()
    nothing = measure(network(words), words, PlainRenderer(words), [], store_of(PlainRenderer(words), []), seconds=0.0, seed=0)
    written = write_report(
        tmp_path, before=nothing, after=nothing, curve=tmp_path / "no.jsonl", data={}, plan={}, method="sft"
    )  # fmt: skip
    assert [concern.name for concern in written.concerns] == ["nothing held out"]
    assert "report/" not in written.page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "labels", [("no", "yes"), ("好评", "差评", "中性"), tuple(f"class number {number:02}" for number in range(30))]
)
def test_a_confusion_matrix_is_drawn_in_any_language(labels: tuple[str, ...], tmp_path: Path, recwarn) -> None:
    guesses = [Guess(number, labels[number % len(labels)], labels[number * 7 % len(labels)]) for number in range(90)]
    assert draw_confusion(Confusion.of(guesses), tmp_path / "confusion.png")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_too_many_classes_are_not_drawn(tmp_path: Path) -> None:
    guesses = [Guess(number, f"{number}", f"{number}") for number in range(40)]
    assert not draw_confusion(Confusion.of(guesses), tmp_path / "confusion.png")
