"""Whatever a row holds, it becomes an example or a fault with a reason: nothing else ever comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from owngpt.data.sources import ReadLog, list_files
from owngpt.errors import OwnGPTError
from owngpt.finetune.examples.columns import Columns
from owngpt.finetune.examples.dataset import open_examples
from owngpt.finetune.examples.detect import fitting
from owngpt.finetune.examples.example import Example, Origin
from owngpt.finetune.examples.fault import Fault
from owngpt.finetune.examples.json_rows import json_rows
from owngpt.finetune.examples.keys import content_key, prompt_key
from owngpt.finetune.examples.layouts import LAYOUTS
from owngpt.finetune.examples.messages import USUAL_TAGS
from owngpt.finetune.examples.rows import read_rows
from owngpt.finetune.examples.summary import Summary

WORDS = st.sampled_from(["", " ", "Hi", "你好", '{"name": "f"}', '[{"role": "user", "content": "x"}]', "[1", "\ud800", "a\n\nb"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
KEYS = ["\ud800", "role", "content", "from", "value", "type", "text", "tool_calls", "name", "function", "weight", "train"]
ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "function_call", "boss", 3, None])
MESSAGES = st.lists(
    st.fixed_dictionaries({}, optional={"role": ROLES, "from": ROLES, "content": LEAVES, "value": WORDS}), max_size=4
)
VALUES = st.recursive(
    LEAVES | MESSAGES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["messages", "conversations", "prompt", "completion", "question", "answer", "instruction", "input", "output", "history"]
FIELDS += ["system", "tools", "chosen", "rejected", "text", "label", "context"]
ROWS = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS | VALUES)
def test_every_layout_gives_an_example_or_a_fault(row: Any) -> None:
    for layout in LAYOUTS.values():
        try:
            fields = Columns().fields(row)
            fitting(fields)
            if layout.missing(fields) is not None:
                continue
            example = layout.read(fields, Origin("a", 1), USUAL_TAGS)
        except Fault as fault:
            assert fault.reason and fault.fix  # noqa: PT017
            continue
        assert isinstance(example, Example)
        assert content_key(example) == content_key(example) and prompt_key(example) >= 0
        summary = Summary()
        summary.take(example)
        json.dumps(vars(example), default=vars, ensure_ascii=False).encode()  # whole characters only


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400) | st.text(alphabet='[]{}",:\\\n\r\t 1a中', max_size=200).map(str.encode))
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"])
def test_any_bytes_give_rows_and_faults_only(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    [file] = list_files([path])
    for row in read_rows(file, ReadLog()):
        assert row.number >= 1
    try:
        open_examples([path], skip_bad=True)
    except OwnGPTError as error:
        assert "a." in str(error)  # noqa: PT017


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, max_size=5), st.integers(1, 40), st.sampled_from([None, 1]))
def test_a_list_is_read_as_json_reads_it_however_it_is_cut(values: list[Any], block: int, indent: int | None) -> None:
    text = json.dumps(values, indent=indent)
    cut = (text[start : start + block] for start in range(0, len(text), block))
    assert [value for _, value in json_rows(cut, by_line=False)] == values
