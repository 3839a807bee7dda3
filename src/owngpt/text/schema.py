"""The JSON schema of a Python function that a model may call, from its type hints and its docstring, as in transformers."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import Docstring, DocstringStyle, parse

from owngpt.errors import UsageError

_SCALARS: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_BARE: dict[Any, dict[str, Any]] = {
    **{kind: {"type": name} for kind, name in _SCALARS.items()},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
}
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Describe a function to a model.

    :param function: with type hints and a docstring in Google's style that describes each argument; ``(choices: [...])``
        at the end of a description lists the values that an argument may have.
    :returns: ``{"type": "function", "function": {"name", "description", "parameters"}}``.
    :raises UsageError: a hint or a description is missing, or a hint has no JSON schema.
    """
    name = getattr(function, "__name__", "function")
    text = inspect.getdoc(function)
    if not text:
        raise UsageError(f"{name} has no docstring, which is what tells a model when to call it")
    docstring = parse(text, DocstringStyle.GOOGLE)
    hints = _hints(function, name)
    described = {argument: _described(hint, name, argument, docstring) for argument, hint in hints.items()}
    parameters: dict[str, Any] = {"type": "object", "properties": described}
    required = [argument for argument in hints if _parameters(function)[argument].default is inspect.Parameter.empty]
    if required:
        parameters["required"] = required
    schema = {"name": name, "description": (docstring.description or "").strip(), "parameters": parameters}
    return {"type": "function", "function": {**schema, **_returned(function, docstring)}}


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(function).parameters)
    first = next(iter(found), None)
    if first in ("self", "cls") and found[first].annotation is inspect.Parameter.empty:
        del found[first]
    return found


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    hints = _resolved(function)
    missing = [argument for argument in _parameters(function) if argument not in hints]
    if missing:
        raise UsageError(f"the argument {missing[0]} of {name} has no type hint; add one")
    return {argument: hints[argument] for argument in _parameters(function)}


def _resolved(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError) as error:
        raise UsageError(f"the type hints of {getattr(function, '__name__', function)} cannot be read: {error}") from error


def _described(hint: Any, name: str, argument: str, docstring: Docstring) -> dict[str, Any]:
    text = next((entry.description for entry in docstring.params if entry.arg_name == argument), None)
    if text is None:
        raise UsageError(f"the docstring of {name} does not describe the argument {argument}; add it under Args:")
    schema, text = dict(_schema(hint)), re.sub(r"\s*\n+\s*", " ", text.strip())
    choices = _CHOICES.search(text)
    if choices:
        try:
            listed = json.loads(choices[1])
        except ValueError:
            raise UsageError(f'the choices of {argument} in {name} are not a JSON list; write (choices: ["a", "b"])') from None
        schema["enum"] = [choice.strip() if isinstance(choice, str) else choice for choice in listed]
        text = text[: choices.start()].strip()
    return {**schema, "description": text}


def _returned(function: Callable[..., Any], docstring: Docstring) -> dict[str, Any]:
    """What the function returns, where that can be said; most templates do not read it."""
    hints = _resolved(function)
    if "return" not in hints:
        return {}
    try:
        schema = dict(_schema(hints["return"]))
    except UsageError:
        return {}
    if docstring.returns is not None:
        stated = (docstring.returns.type_name, docstring.returns.description)
        schema["description"] = ": ".join(part for part in stated if part)
    return {"return": schema}


def _schema(hint: Any) -> dict[str, Any]:
    """JSON schema of a type hint."""
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and origin is None and issubclass(hint, Enum):
        return _enumerated([member.value for member in hint], hint)
    if origin is None:
        if hint not in _BARE:
            raise UsageError(f"the type hint {hint!r} has no JSON schema; use basic types, or give the schema as a dict")
        return _BARE[hint]
    if origin in (Union, types.UnionType):
        return _either(args)
    if origin is Literal:
        return _enumerated(list(args), hint)
    if origin is list:
        return {"type": "array", "items": _schema(args[0])}
    if origin is tuple:
        if len(args) == 1 or ... in args:
            raise UsageError(f"the type hint {hint!r} has no JSON schema; use list[…] for any number of items")
        return {"type": "array", "prefixItems": [_schema(item) for item in args]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(args[1])}
    raise UsageError(f"the type hint {hint!r} has no JSON schema; use basic types, or give the schema as a dict")


def _either(args: tuple[Any, ...]) -> dict[str, Any]:
    kinds = [_schema(item) for item in args if item is not type(None)]
    if len(kinds) == 1:
        schema = dict(kinds[0])
    elif all(kind.keys() == {"type"} and isinstance(kind["type"], str) for kind in kinds):
        names = sorted({kind["type"] for kind in kinds})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": kinds}
    return {**schema, "nullable": True} if type(None) in args else schema


def _enumerated(values: list[Any], hint: Any) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise UsageError(f"the type hint {hint!r} lists values that JSON has no literals for")
    kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}
