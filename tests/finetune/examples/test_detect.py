"""The layout of a file is found out from its columns and said; where several would do, the person is asked."""

from __future__ import annotations

from typing import Any

import pytest

from owngpt.errors import UsageError
from owngpt.finetune.examples.columns import Columns, columns_from
from owngpt.finetune.examples.detect import check_layout, detect
from owngpt.finetune.examples.fault import Fault
from owngpt.finetune.examples.layouts import layout_named
from owngpt.finetune.examples.rows import Row

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def found(*values: Any, wanted: Any = None, **named: str) -> tuple[str, tuple[str, ...]]:
    detected = detect("a.jsonl", [Row(n, value) for n, value in enumerate(values, 1)], Columns(named), wanted)
    assert detected is not None
    return detected.layout.name, detected.unused


@pytest.mark.parametrize(
    ("row", "layout", "unused"),
    [
        ({"messages": CHAT, "tools": []}, "messages", ()),
        ({"prompt": "x", "messages": CHAT, "prompt_id": "1"}, "messages", ("prompt", "prompt_id")),
        ({"conversations": CHAT, "id": 1}, "sharegpt", ("id",)),
        ({"prompt": "x", "completion": "y"}, "completion", ()),
        ({"prompt": "x", "completion": "y", "system": "s"}, "question-answer", ()),
        ({"prompt": "x", "response": "y"}, "question-answer", ()),
        ({"Question": "x", "Answer": "y", "Category": "z"}, "question-answer", ("category",)),
        ({"instruction": "x", "input": "", "output": "y"}, "alpaca", ()),
        ({"instruction": "x", "context": "", "response": "y", "category": "z"}, "alpaca", ("category",)),
        ({"input": "x", "output": "y"}, "question-answer", ()),
        ({"kind": "z", "input": "x", "target": "y"}, "question-answer", ("kind",)),
        ({"text": "x", "meta": {}}, "text", ("meta",)),
        ({"content": "x", "url": "y"}, "text", ("url",)),
        ({"text": "x", "label": 1}, "label", ()),
        ({"text": "x", "category": "y"}, "text", ("category",)),
        ({"sentence": "x", "label": "y", "idx": 3}, "label", ("idx",)),
        ({"prompt": "x", "chosen": "y", "rejected": "z", "score": 1.0}, "preference", ("score",)),
        ({"chosen": CHAT, "rejected": CHAT, "messages": CHAT}, "preference", ()),
        (CHAT, "messages", ()),
        ("Once upon a time", "text", ()),
    ],
)
def test_layouts_are_told_by_their_columns(row: Any, layout: str, unused: tuple[str, ...]) -> None:
    assert found(row) == (layout, unused)


def test_columns_of_all_first_rows_count_and_rows_that_cannot_be_read_do_not() -> None:
    assert found(Fault("broken", "mend"), 3, {"prompt": "x", "completion": "y"}, {"prompt": "x", "completion": "y", "id": 1}) == (
        "completion",
        ("id",),
    )
    assert detect("a.jsonl", [Row(1, Fault("broken", "mend"))], Columns(), None) is None


def test_a_text_that_only_repeats_the_answer_does_not_make_a_choice() -> None:
    row = {"instruction": "Name a color", "output": "Red", "text": "### Instruction: Name a color ### Response: Red"}
    assert found(row) == ("alpaca", ("text",))
    with pytest.raises(UsageError, match="a.jsonl can be read in 2 ways"):
        found({**row, "text": "Something else"})


def test_several_layouts_are_named_with_the_option() -> None:
    pattern = r"only you know which is meant: --layout messages reads .*; --layout completion reads .*prompt"
    with pytest.raises(UsageError, match=pattern):
        found({"messages": CHAT, "prompt": "x", "completion": "y"})
    with pytest.raises(UsageError, match="--layout question-answer reads .*--layout label reads"):
        found({"question": "x", "answer": "y", "label": "z"})


def test_what_the_method_wants_decides() -> None:
    assert found({"question": "x", "answer": "y", "label": "z"}, wanted="label")[0] == "label"
    assert found({"text": "x", "category": "z"}, wanted="label")[0] == "label"
    assert found({"text": "x", "label": "z"}, wanted="text")[0] == "text"


def test_columns_that_fit_nothing_are_listed_with_what_to_write() -> None:
    pattern = r"a.jsonl has the columns 'frage', 'antwort', which fit no layout; .*--columns question=frage,answer=antwort"
    with pytest.raises(UsageError, match=pattern):
        found({"frage": "x", "antwort": "y"})
    assert found({"Frage": "x", "antwort": "y"}, prompt="Frage", completion="antwort") == ("completion", ())
    assert found({"prompt": "x", "completion": "y"}, question="prompt", answer="completion") == ("question-answer", ())


def test_a_named_column_that_is_not_there_is_said() -> None:
    with pytest.raises(UsageError, match=r"no column 'fragen' \(--columns prompt=fragen\); it has 'frage', 'antwort'"):
        found({"frage": "x", "antwort": "y"}, prompt="fragen", completion="antwort")
    with pytest.raises(
        UsageError, match="--columns names 'promt', which no layout has; write FIELD=COLUMN with a field out of messages"
    ):
        columns_from({"promt": "x"})
    with pytest.raises(UsageError, match="no column for text; write text=COLUMN"):
        columns_from({"text": " "})


def test_a_named_layout_must_have_its_columns() -> None:
    rows = [Row(1, {"frage": "x", "completion": "y"})]
    with pytest.raises(
        UsageError, match="has no column for prompt, which the layout completion needs; it has 'frage', 'completion'"
    ):
        check_layout("a.jsonl", layout_named("completion"), rows, Columns())
    checked = check_layout("a.jsonl", layout_named("completion"), rows, Columns({"prompt": "frage"}))
    assert checked is not None and checked.unused == ()


def test_marks_without_a_counterpart_are_not_taken_for_answers() -> None:
    for row in ({"prompt": "x", "completion": "y", "label": True}, {"instruction": "x", "output": "y", "kto_tag": False}):
        with pytest.raises(UsageError, match="marks answers as good or bad without a counterpart"):
            found(row)
