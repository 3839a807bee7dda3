"""Where a model folder keeps its chat templates: inside the tokenizer's settings, or in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from owngpt.config.json_files import read_bounded, read_json_object
from owngpt.errors import ModelFolderError

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
OLD_TEMPLATE_FOLDER = "chat_templates"
PROCESSOR_FILE = "chat_template.json"
"""Where models with a processor kept theirs."""
DEFAULT_NAME = "default"
LARGEST_FILE_BYTES = 1 << 20
MOST_TEMPLATES = 64

Templates = tuple[str | None, dict[str, str]]


def read_templates(folder: Path, inline: Any) -> Templates:
    """The default template, if there is one, and those with other names.

    Files win over what the settings hold, as in transformers.

    :param inline: "chat_template" of ``tokenizer_config.json``: a text, a list of ``{"name", "template"}``, or a mapping.
    :raises ModelFolderError: a template cannot be read.
    """
    named = _template_files_in(folder)
    if not named:
        named = _inline_templates(inline)
    if not named and (folder / PROCESSOR_FILE).is_file():
        named = _processor_template(folder / PROCESSOR_FILE)
    return named.pop(DEFAULT_NAME, None), named


def _template_files_in(folder: Path) -> dict[str, str]:
    """The templates that are files of their own, by name."""
    files = {DEFAULT_NAME: folder / TEMPLATE_FILE}
    for name in (OLD_TEMPLATE_FOLDER, TEMPLATE_FOLDER):
        files.update({file.stem: file for file in sorted((folder / name).glob("*.jinja"))})
    if len(files) > MOST_TEMPLATES:
        raise ModelFolderError(f"{folder} holds {len(files)} chat templates; at most {MOST_TEMPLATES} are read")
    return {name: _read(file) for name, file in files.items() if file.is_file()}


def template_files(default: str | None, named: dict[str, str]) -> dict[str, str]:
    """The files that hold these templates, by their path inside the folder.

    :raises ModelFolderError: a name that is no file name.
    """
    files = {} if default is None else {TEMPLATE_FILE: default}
    for name, source in named.items():
        if not name or "/" in name or "\\" in name or name.startswith("."):
            raise ModelFolderError(f"a chat template is named {name!r}, which cannot be a file's name")
        files[f"{TEMPLATE_FOLDER}/{name}.jinja"] = source
    return files


def _inline_templates(inline: Any) -> dict[str, str]:
    if isinstance(inline, str):
        return {DEFAULT_NAME: inline}
    pairs = inline.items() if isinstance(inline, dict) else _named_pairs(inline or [])
    return {name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)}


def _named_pairs(entries: Any) -> list[tuple[Any, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelFolderError("chat_template in tokenizer_config.json is neither a text nor a list of named templates")
    return [(entry.get("name"), entry.get("template")) for entry in entries]


def _processor_template(file: Path) -> dict[str, str]:
    return _inline_templates(read_json_object(file, LARGEST_FILE_BYTES).get("chat_template"))


def _read(file: Path) -> str:
    try:
        return read_bounded(file, LARGEST_FILE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFolderError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from error
