"""LLaMA-Factory's dataset_info.json: which file holds a set, in which layout, and what its columns and roles are called.

The format is that of its data/README: without `columns` the usual names hold, with `columns` only those that are named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from owngpt.errors import DataError, UsageError
from owngpt.finetune.examples.columns import Columns
from owngpt.finetune.examples.folders import files_of
from owngpt.finetune.examples.layouts import LAYOUTS, Layout
from owngpt.finetune.examples.messages import USUAL_TAGS, Tags
from owngpt.finetune.examples.part import Part

FILE = "dataset_info.json"
_MOST_BYTES = 16 * 2**20
_FIELDS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "conversations",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
}
"""Our fields by the names that `columns` has for them; the values are also its columns where it is left out."""
_USUAL = {"alpaca": ("instruction", "input", "output"), "sharegpt": ("conversations",), "openai": ("conversations",)}
_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_NOT_TEXT = ("images", "videos", "audios")


def description_of(source: Path) -> Path | None:
    """The description that `source`, a folder or a file, is or holds."""
    description = source / FILE if source.is_dir() else source
    if description.name != FILE or not description.is_file():
        return None
    # the library `datasets` writes a file of the same name that describes the columns of .arrow files
    return None if any(description.parent.glob("*.arrow")) else description


def described_parts(description: Path, name: str | None, notes: list[str]) -> list[Part]:
    """The files of the set `name`; without a name, of the only one there is.

    Raises:
        UsageError: there is no such set, several without a name, or one that is kept elsewhere or is not text.
        DataError: the description or a file cannot be read.
    """
    sets = _read(description)
    if name is None:
        if len(sets) != 1:
            raise UsageError(
                f"{description} describes {len(sets)} sets ({_names(sets)}); name one, as in {description}:{_any(sets)}"
            )
        name = next(iter(sets))
    if name not in sets:
        raise UsageError(f"{description} describes no set {name!r}; it has {_names(sets)}")
    entry, where = sets[name], f"{name} in {description}"
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} is no object; mend the description")
    _check(entry, where)
    layout, columns = _layout(entry, where)
    limit = entry.get("num_samples")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise DataError(f"num_samples of {where} is {limit!r}; give a whole number from 1, or leave it out")
    path = description.parent / str(entry["file_name"])
    return [Part(file, layout, columns, _tags(entry, where), limit) for file in files_of(path, notes)]


def _read(description: Path) -> dict[str, Any]:
    try:
        if description.stat().st_size > _MOST_BYTES:
            raise DataError(f"{description} is over {_MOST_BYTES:,} bytes, which no description is; name the data file itself")
        sets = json.loads(description.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{description} cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{description} is not valid JSON ({error}); mend it, or name the data file itself") from error
    if not isinstance(sets, dict) or not sets:
        raise DataError(f"{description} describes no set; name the data file itself")
    return sets


def _check(entry: Mapping[str, Any], where: str) -> None:
    columns = entry.get("columns") or {}
    if not isinstance(columns, Mapping) or not all(isinstance(column, str) for column in columns.values() if column is not None):
        raise DataError(f"columns of {where} is no object of names; mend the description")
    if elsewhere := [key for key in _ELSEWHERE if entry.get(key)]:
        raise UsageError(f"{where} is kept elsewhere ({elsewhere[0]}: {entry[elsewhere[0]]}); download it and name the file")
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        raise DataError(f"{where} names no file; add file_name")
    if kinds := [key for key in _NOT_TEXT if columns.get(key)]:
        raise UsageError(f"{where} holds {kinds[0]}; only text can be learned")
    if columns.get("kto_tag"):
        raise UsageError(f"{where} marks answers as good or bad without a counterpart (KTO); give pairs as chosen and rejected")
    if (formatting := entry.get("formatting", "alpaca")) not in _USUAL:
        raise UsageError(f"{where} has the formatting {formatting!r}; known are {', '.join(_USUAL)}")


def _layout(entry: Mapping[str, Any], where: str) -> tuple[Layout, Columns]:
    formatting = entry.get("formatting", "alpaca")
    if columns := entry.get("columns"):
        named = {_FIELDS[key]: column for key, column in columns.items() if key in _FIELDS and column}
    else:
        named = {name: name for name in _USUAL[formatting]}
        if entry.get("ranking"):
            named |= {"chosen": "chosen", "rejected": "rejected"}
    if entry.get("ranking"):
        if not {"chosen", "rejected"} <= set(named):
            raise UsageError(f"{where} is a ranking, but names no columns for chosen and rejected; add them")
        named.pop("output", None)
        return LAYOUTS["preference"], Columns(named, only=True)
    if formatting != "alpaca":
        return LAYOUTS["sharegpt"], Columns({"conversations": "conversations", **named}, only=True)
    if "output" not in named:  # a set for pre-training: its prompt is all there is
        return LAYOUTS["text"], Columns({"text": named.get("instruction", "text")}, only=True)
    return LAYOUTS["alpaca"], Columns(named, only=True)


def _tags(entry: Mapping[str, Any], where: str) -> Tags:
    given = entry.get("tags") or {}
    if not isinstance(given, Mapping) or not all(isinstance(value, str) for value in given.values() if value is not None):
        raise DataError(f"tags of {where} is no object of names; mend the description")
    roles = {given[tag].lower(): role for tag, role in _ROLE_TAGS.items() if given.get(tag)}
    return Tags(
        role=(given["role_tag"],) if given.get("role_tag") else USUAL_TAGS.role,
        content=(given["content_tag"],) if given.get("content_tag") else USUAL_TAGS.content,
        roles={**USUAL_TAGS.roles, **roles},
    )


def _names(sets: Mapping[str, Any]) -> str:
    return ", ".join(list(sets)[:10]) + (f" and {len(sets) - 10} more" if len(sets) > 10 else "")


def _any(sets: Mapping[str, Any]) -> str:
    return next(iter(sets))
