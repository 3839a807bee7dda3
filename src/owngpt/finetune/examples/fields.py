"""The fields of rows: what a column holds, under the name that layouts give it and the usual other spellings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owngpt.finetune.examples.fault import Fault
from owngpt.finetune.examples.messages import text_of

SPELLINGS: dict[str, tuple[str, ...]] = {
    "messages": ("dialogue", "dialog"),
    "conversations": ("conversation",),
    "prompt": (),
    "completion": (),
    "question": ("query", "q", "ask", "user", "prompt", "input", "问题", "提问", "问"),
    "answer": ("response", "a", "reply", "output", "completion", "target", "assistant", "回答", "答案", "回复", "答"),
    "context": (),
    "instruction": ("指令",),
    "input": ("context", "输入"),
    "output": ("response", "answer", "completion", "target", "输出"),
    "history": (),
    "system": ("system_prompt",),
    "tools": ("functions",),
    "chosen": (),
    "rejected": (),
    "text": ("content", "document", "body", "article", "story", "passage", "正文", "文本", "内容"),
    "label": ("labels", "class", "category", "intent", "sentiment", "标签", "类别", "分类"),
}
"""Fields, by which a person names columns, and what else they are called in files."""
LABELLED_TEXTS = ("text", "sentence", "input", "content", "question", "query", "utterance", "review", "comment", "文本", "内容")
"""What the text of a label is called."""

Fields = Mapping[str, Any]
"""Values of a row by column in lower case, without those that are None."""


def column_of(columns: Mapping[str, Any] | frozenset[str], name: str) -> str | None:
    """The column that holds the field `name`: under its own name, else under the first other spelling there is."""
    return next((column for column in (name, *SPELLINGS[name]) if column in columns), None)


def field(fields: Fields, name: str) -> Any:
    """The value of the field `name`, None where the row has none."""
    column = column_of(fields, name)
    return None if column is None else fields[column]


def instruction(fields: Fields) -> str:
    """The instruction and its input, as LLaMA-Factory joins them."""
    parts = (field(fields, "instruction"), field(fields, "input"))
    given = [text_of(part, name) for part, name in zip(parts, ("instruction", "input"), strict=True) if part not in (None, "")]
    if not given:
        raise Fault("the instruction is empty", "write it, or take the row out")
    return "\n".join(given)
