"""Which layout a file has, from the columns of its rows; where two would do, the person is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from owngpt.errors import UsageError
from owngpt.finetune.examples.columns import Columns
from owngpt.finetune.examples.example import Kind
from owngpt.finetune.examples.fault import Fault
from owngpt.finetune.examples.fields import Fields, column_of
from owngpt.finetune.examples.layouts import LAYOUTS, Layout
from owngpt.finetune.examples.rows import Row

PROBED_ROWS = 100
_ASIDE = ("content", "document", "body", "article", "story", "passage", "正文", "文本", "内容")
"""Other names of a text, which are taken for one only where nothing else is there to learn."""
_UNPAIRED = (
    "{name} marks answers as good or bad without a counterpart (KTO), which no method here learns from; give pairs as chosen and "
    "rejected, or name the layout (--layout) to learn from all answers alike"
)


@dataclass(frozen=True)
class Detected:
    """What was found out about a file."""

    layout: Layout
    unused: tuple[str, ...]
    """Columns that are not read, as the file names them in lower case."""


def detect(name: str, rows: Sequence[Row], columns: Columns, wanted: Kind | None) -> Detected | None:
    """The layout of the file `name` that begins with `rows`; None if none of these can be read.

    Args:
        wanted: the kind that the method learns from, which decides between layouts that would both do.

    Raises:
        UsageError: several layouts would do, or none; the message names them and the option.
    """
    probed = [fields for row in rows if (fields := _fields(row, columns)) is not None]
    if not probed:
        return None
    _check_named(name, rows, probed, columns)
    votes = Counter(frozenset(fitting(fields)) for fields in probed)
    candidates, _ = votes.most_common(1)[0]
    if not candidates:
        candidates = max(votes, key=lambda choice: (bool(choice), votes[choice]))
    if not candidates:
        raise UsageError(_no_layout(name, rows))
    examples = [fields for fields in probed if candidates <= frozenset(fitting(fields))]
    layout = LAYOUTS[_decided(name, _by_rank(candidates), examples, wanted)]
    if layout.kind in ("chat", "completion") and any(_is_marked(fields) for fields in examples):
        raise UsageError(_UNPAIRED.format(name=name))
    return Detected(layout, tuple(unused_columns(layout, probed)))


def check_layout(name: str, layout: Layout, rows: Sequence[Row], columns: Columns) -> Detected | None:
    """That the file `name` has the columns of the layout that was named.

    Raises:
        UsageError: none of the first rows has.
    """
    probed = [fields for row in rows if (fields := _fields(row, columns)) is not None]
    if not probed:
        return None
    _check_named(name, rows, probed, columns)
    if all(missing := [layout.missing(fields) for fields in probed]):
        raise UsageError(
            f"{name} has no column for {missing[0]}, which the layout {layout.name} needs; it has {_listed(rows)}: "
            f"name one with --columns {missing[0]}=COLUMN"
        )
    return Detected(layout, tuple(unused_columns(layout, probed)))


def fitting(fields: Fields) -> list[str]:
    """The layouts that a row fits by its columns, those that take in more of it first.

    Raises nothing; a row that fits none gives an empty list.
    """
    columns = frozenset(fields)
    if {"chosen", "rejected"} <= columns:
        return ["preference"]
    found = [name for name in ("messages", "conversations") if column_of(columns, name)]
    found = ["sharegpt" if name == "conversations" else name for name in found]
    if exchange := _exchange(columns):
        found.append(exchange)
    if "text" in columns:
        found.append("text")
    if LAYOUTS["label"].missing(columns) is None:
        found.append("label")
    if not found and any(name in columns for name in _ASIDE):
        found.append("text")
    return found


def unused_columns(layout: Layout, probed: Sequence[Fields]) -> list[str]:
    """Columns of these rows that the layout does not read, in the order in which they appear."""
    columns = dict.fromkeys(name for fields in probed for name in fields)
    used = layout.used(frozenset(columns))
    return [name for name in columns if name not in used]


def _fields(row: Row, columns: Columns) -> Fields | None:
    try:
        return None if isinstance(row.values, Fault) else columns.fields(row.values)
    except Fault:
        return None


def _exchange(columns: frozenset[str]) -> str | None:
    """The layout of a row that asks and answers in two columns."""
    if column_of(columns, "instruction") and column_of(columns, "output"):
        return "alpaca"
    if {"prompt", "completion"} <= columns and not column_of(columns, "system"):
        return "completion"
    question, answer = column_of(columns, "question"), column_of(columns, "answer")
    return "question-answer" if question and answer and question != answer else None


def _by_rank(candidates: frozenset[str]) -> list[str]:
    return [name for name in LAYOUTS if name in candidates]


def _decided(name: str, candidates: Sequence[str], examples: Sequence[Fields], wanted: Kind | None) -> str:
    """One of the layouts that all these rows fit."""
    fitting_wanted = [choice for choice in candidates if LAYOUTS[choice].kind == wanted]
    if wanted is not None and fitting_wanted:
        candidates = fitting_wanted
    elif len(candidates) > 1 and "label" in candidates and not any("label" in fields for fields in examples):
        candidates = [choice for choice in candidates if choice != "label"]  # a category by the side of what is learned
    if len(candidates) > 1 and "text" in candidates and _repeats(candidates, examples):
        candidates = [choice for choice in candidates if choice != "text"]
    if len(candidates) == 2 and set(candidates) == {"text", "label"}:
        candidates = ["label"]  # a text with its label
    if len(candidates) > 1:
        choices = "; ".join(f"--layout {choice} reads {LAYOUTS[choice].hint}" for choice in candidates)
        raise UsageError(f"{name} can be read in {len(candidates)} ways, and only you know which is meant: {choices}")
    return candidates[0]


def _repeats(candidates: Sequence[str], examples: Sequence[Fields]) -> bool:
    """Whether the column `text` only repeats what other columns hold, as in the first Alpaca file."""
    layout = LAYOUTS[next(choice for choice in candidates if choice != "text")]
    answers = [(fields.get("text"), fields.get(column_of(fields, layout.needed[-1]) or "")) for fields in examples]
    return all(isinstance(text, str) and isinstance(answer, str) and answer.strip() in text for text, answer in answers)


def _check_named(name: str, rows: Sequence[Row], probed: Sequence[Fields], columns: Columns) -> None:
    for wanted, column in columns.named.items():
        if not columns.only and not any(wanted in fields for fields in probed):
            raise UsageError(f"{name} has no column {column!r} (--columns {wanted}={column}); it has {_listed(rows)}")


def _is_marked(fields: Fields) -> bool:
    return isinstance(fields.get("label"), bool) or "kto_tag" in fields


def _no_layout(name: str, rows: Sequence[Row]) -> str:
    return (
        f"{name} has the columns {_listed(rows)}, which fit no layout; say which is which, as in "
        "--columns question=frage,answer=antwort (a chat), prompt=…,completion=… (plain text), text=… or text=…,label=…"
    )


def _listed(rows: Sequence[Row]) -> str:
    """The columns of these rows as the file names them."""
    names = list(dict.fromkeys(str(name) for row in rows if isinstance(row.values, Mapping) for name in row.values))
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(map(repr, names[:20])) + more) or "none"
