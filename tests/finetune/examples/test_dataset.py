"""Sets of examples: said in a sentence, read again and again, and bad rows named with file, line and fix."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pytest

from owngpt.errors import DataError, UsageError
from owngpt.finetune.examples.dataset import ExampleSet, open_examples
from owngpt.finetune.examples.example import Chat, Completion, Labelled

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


def write(path: Path, rows: Iterable[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def chats(count: int) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": f"Question {n}"}, ASSISTANT, USER][: 2 + n % 2]} for n in range(count)]


def test_a_set_is_said_back_in_one_sentence(tmp_path: Path) -> None:
    rows = chats(1200)
    for line in range(88, 100):
        rows[line - 1] = {"messages": [USER]}
    examples = open_examples([write(tmp_path / "a.jsonl", rows)], skip_bad=True)
    assert examples.sentence() == "1,188 chats, 2.5 turns each; 12 rows refused: line 88: no assistant turn"
    assert (examples.kind, len(examples)) == ("chat", 1188)
    assert examples.lines()[0].endswith('a.jsonl: messages ({"messages": [{"role": "user", "content": …}, …]})')


def test_a_set_is_read_again_and_again(tmp_path: Path) -> None:
    examples = open_examples([write(tmp_path / "a.jsonl", [*chats(9), "{", *chats(1)])], skip_bad=True)
    first, second = list(examples), list(examples)
    assert first == second and len(first) == len(examples) == 10
    assert first[0].origin.line == 1 and first[-1].origin.line == 11


def test_bad_rows_stop_the_run_unless_the_person_says_so(tmp_path: Path) -> None:
    rows = [*chats(2), {"messages": [USER]}, "{broken", {"messages": [USER]}]
    with pytest.raises(DataError) as error:
        open_examples([write(tmp_path / "a.jsonl", rows)])
    assert str(error.value) == (
        f"{tmp_path}/a.jsonl, line 3: no assistant turn; add the answer that is to be learned, or leave such rows out with "
        "--skip-bad (3 rows cannot be used in all: 2 × no assistant turn, 1 × not valid JSON)"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "the conversation is empty"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "message 2 (assistant) is empty"),
        ({"messages": [USER, {"role": "boss", "content": "x"}]}, "message 2 has the role 'boss'"),
        ({"prompt": "x", "completion": "y"}, "a completion row in a file of messages rows (line 1)"),
        ({"instruction": "x", "output": "y"}, "an alpaca row in a file of messages rows (line 1)"),
        ({"other": 1}, "no messages"),
        ("[1, 2", "not valid JSON (Expecting ',' delimiter at column 6)"),
        ('"just a string"', "a text row in a file of messages rows (line 1)"),
        ("7", "the row is no object"),
        ({"messages": [USER, {"role": "assistant", "content": "x" * 5_000_000}]}, "the row is longer than 4,194,304 characters"),
    ],
)
def test_every_bad_row_is_named_with_its_line(tmp_path: Path, row: Any, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", [*chats(410), row, *chats(3)])
    with pytest.raises(DataError) as error:
        open_examples([path])
    assert str(error.value).startswith(f"{path}, line 411: {reason}; ")
    examples = open_examples([path], skip_bad=True)
    assert len(examples) == 413
    [refused] = examples.to_dict()["refused"]["first"]
    assert (refused["number"], refused["reason"]) == (411, reason) and refused["fix"]


def test_broken_json_on_line_4711_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*chats(4710), '{"messages": [}', *chats(3)])
    with pytest.raises(
        DataError, match=r"a.jsonl, line 4,711: not valid JSON \(Expecting value at column 15\); mend the line, or"
    ):
        open_examples([path])


def test_what_lies_behind_damage_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    text = json.dumps(chats(9), indent=1)
    (tmp_path / "rows.json").write_text(text.replace('"role"', "role", 6).replace("role:", '"role":', 5), encoding="utf-8")
    examples = open_examples([tmp_path / "rows.json"], skip_bad=True)
    assert len(examples) == 2
    assert examples.sentence().endswith("; 1 file could not be read to the end")
    assert examples.to_dict()["refused"]["broken_files"] == 1


def test_long_rows_that_are_no_damage_are_kept_for_the_overflow_option(tmp_path: Path) -> None:
    long = {"messages": [USER, {"role": "assistant", "content": "word " * 100_000}]}
    examples = open_examples([write(tmp_path / "a.jsonl", [*chats(3), long])])
    assert len(examples) == 4 and examples.to_dict()["longest_characters"] == 500_002


def test_a_label_that_is_seen_once_is_refused(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(["good", "bad", "good", "baad", "bad"])]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        DataError, match="a.jsonl, line 4: the label 'baad' is seen once; give at least two examples of each label"
    ):
        open_examples([path])
    examples = open_examples([path], skip_bad=True)
    assert [example.label for example in examples if isinstance(example, Labelled)] == ["good", "bad", "good", "bad"]
    assert examples.summary.labels == {"good": 2, "bad": 2}
    assert examples.sentence() == "4 labelled texts, 2 labels; 1 row refused: line 4: the label 'baad' is seen once"


def test_a_column_that_is_no_label_is_found_out(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": f"id-{n}"} for n in range(10_001)]
    with pytest.raises(UsageError, match="more than 10,000 different labels, so the column is no label"):
        open_examples([write(tmp_path / "a.jsonl", rows)])


def test_a_folder_reads_its_rows_and_leaves_other_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    write(folder / "a.jsonl", chats(3))
    (folder / "more" / "b.csv").write_text("question,answer\nx,y\n")
    (folder / "README.md").write_text("# About")
    examples = open_examples([folder, folder / "a.jsonl"])
    assert len(examples) == 4 and examples.kinds == {"chat": 4}
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Once.")
    with pytest.raises(DataError, match="texts holds no rows to learn from; .*or name plain texts one by one"):
        open_examples([tmp_path / "texts"])
    assert open_examples([tmp_path / "texts" / "a.txt"]).sentence() == "1 text"


def test_files_for_testing_are_left_out_of_a_folder_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "train-00000-of-00001.jsonl", chats(5))
    write(tmp_path / "data" / "test.jsonl", chats(3))
    write(tmp_path / "latest.jsonl", chats(2))  # no word of its own
    examples = open_examples([tmp_path])
    assert len(examples) == 7
    assert examples.lines()[-1].endswith(": data/test.jsonl, for testing by its name; name a file itself to learn from it")
    assert len(open_examples([tmp_path, tmp_path / "data" / "test.jsonl"])) == 10
    assert len(open_examples([tmp_path / "data"])) == 3


def test_what_the_library_datasets_saves_is_read(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": [f"p{n}" for n in range(300)], "completion": ["c"] * 300, "image": [b"x"] * 300})
    for folder, opener in (("stream", pyarrow.ipc.new_stream), ("file", pyarrow.ipc.new_file)):
        (tmp_path / folder).mkdir()
        with opener(str(tmp_path / folder / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        (tmp_path / folder / "state.json").write_text('{"_split": "train"}')
        (tmp_path / folder / "dataset_info.json").write_text('{"features": {}, "citation": ""}')
        examples = open_examples([tmp_path / folder])
        assert examples.sentence() == "300 completions" and [one.origin.line for one in examples][-1] == 300
    (tmp_path / "bad.arrow").write_bytes(b"nothing")
    with pytest.raises(DataError, match="bad.arrow, row 1: not valid arrow"):
        open_examples([tmp_path / "bad.arrow"])


def test_kinds_mix_where_one_method_learns_them(tmp_path: Path) -> None:
    chat = write(tmp_path / "a.jsonl", chats(2))
    text = write(tmp_path / "b.jsonl", [{"text": "Once."}])
    pair = write(tmp_path / "c.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "y"}])
    examples = open_examples([text, chat])
    assert examples.sentence() == "1 text, 2 chats, 2.5 turns each" and examples.kind == "chat"
    with pytest.raises(
        UsageError, match="c.jsonl holds preference rows, .*a.jsonl chat rows, which are learned by different methods"
    ):
        open_examples([chat, pair])


def test_what_a_method_does_not_learn_is_refused(tmp_path: Path) -> None:
    chat = write(tmp_path / "a.jsonl", chats(2))
    with pytest.raises(UsageError, match=r"a.jsonl holds .*\(messages\), but a preference is needed; name other data"):
        open_examples([chat], wanted="preference")
    assert open_examples([chat], wanted="chat").kind == "chat"


def test_columns_and_layouts_that_a_person_names_are_used(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Frage;Antwort\nWie?;So.\n", encoding="utf-8-sig")
    with pytest.raises(UsageError, match="--columns question=frage,answer=antwort"):
        open_examples([path])
    [chat] = open_examples([path], columns={"question": "Frage", "answer": "Antwort"})
    assert isinstance(chat, Chat) and chat.origin.line == 2
    [completion] = open_examples([path], columns={"prompt": "Frage", "completion": "Antwort"})
    assert (completion.prompt, completion.completion) == ("Wie?", "So.") if isinstance(completion, Completion) else False
    [text] = open_examples([path], layout="text", columns={"text": "Antwort"})
    assert vars(text)["text"] == "So."


def test_duplicates_encodings_and_empty_files_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "你好，在吗？", "completion": "在的，您请说。"}\n' * 3, encoding="gb18030")
    (tmp_path / "b.jsonl").write_text("")
    examples = open_examples([tmp_path])
    assert examples.sentence() == "3 completions, 2 of them said before"
    assert any("as gb18030" in note for note in examples.summary.notes)
    assert any(note.endswith("b.jsonl is empty") for note in examples.summary.notes)


def test_a_long_broken_beginning_does_not_hide_the_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["<html>"] * 150 + [json.dumps(row) for row in chats(2)])
    examples = open_examples([path], skip_bad=True)
    assert examples.sentence().startswith("2 chats, 2.5 turns each; 150 rows refused: line 1: not valid JSON")


def test_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="b.jsonl holds no rows"):
        open_examples([write(tmp_path / "b.jsonl", [])])
    with pytest.raises(DataError, match="nothing to learn from; 1 row refused: line 1: not valid JSON"):
        open_examples([write(tmp_path / "c.jsonl", ["{"])], skip_bad=True)
    with pytest.raises(UsageError, match="no data was given"):
        open_examples([])


def test_a_name_that_is_nothing_lists_what_comes_close() -> None:
    with pytest.raises(
        DataError, match="faq-zaragosa is neither a file or folder here nor a named set; did you mean faq-zaragoza"
    ):
        open_examples(["faq-zaragosa"])


def test_the_record_of_a_set_is_plain_json_with_hashes(tmp_path: Path) -> None:
    record = open_examples([write(tmp_path / "a.jsonl", [*chats(3), "{"])], skip_bad=True).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["counts"] == {"chat": 3} and len(record["files"][0]["sha256"]) == 64
    assert record["refused"]["reasons"] == {"not valid JSON": 1}


def test_what_is_kept_does_not_grow_with_bad_rows(tmp_path: Path) -> None:
    rows: list[Any] = [*chats(1), *({"messages": [USER, {"role": f"role {n}", "content": "x"}]} for n in range(3000))]
    examples: ExampleSet = open_examples([write(tmp_path / "a.jsonl", rows)], skip_bad=True)
    assert examples.summary.refused_count == 3000
    assert len(examples.summary.refused) == 20 and examples.summary.reasons == {"message N has the role": 3000}
