"""Options made from the configuration records, so that the command line and Python share one schema and one help text."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

from cyclopts import Parameter
from docstring_parser import parse_from_object

Json = Annotated[bool, Parameter(show_default=False, help="Print one JSON object on stdout and nothing else.")]
Quiet = Annotated[bool, Parameter(show_default=False, help="No progress on stderr.")]


AdapterFolder = Annotated[
    str | None, Parameter(name="--adapter", show_default=False, help="The folder of a LoRA adapter to put over the model.")
]
Speculate = Annotated[
    bool,
    Parameter(
        show_default=False,
        help="Guess tokens from what the text has already and check several at once; stops by itself where that does not pay.",
    ),
]
Draft = Annotated[
    str | None,
    Parameter(show_default=False, help="A small model with the same tokenizer that guesses tokens; it implies --speculate."),
]
Quantize = Literal["auto", "none", "int8", "int4"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


def quantize_for(quantize: Quantize, dtype: DType) -> Quantize:
    """Who names a data type wants to compute in it: then auto does not look for smaller weights."""
    return "none" if quantize == "auto" and dtype != "auto" else quantize


def options_of(record: type, *, leave_out: Collection[str] = ()) -> Any:
    """A type for a verb's ``options`` argument: a dictionary of those fields of ``record`` that the person gave.

    What was not given is absent rather than a default, so that a configuration file or a model's own settings
    can speak for it. Help texts are the record's attribute docstrings.
    """
    helps = {parameter.arg_name: parameter.description for parameter in parse_from_object(record).params}
    hints = get_type_hints(record)
    hints = {name: dict[str, float] if hint == dict[int, float] else hint for name, hint in hints.items()}  # keys are typed text
    annotations = {
        field.name: Annotated[
            hints[field.name],
            Parameter(name=_option(field), negative=field.metadata.get("negative", ()), help=_help(helps.get(field.name), field)),
        ]
        for field in dataclasses.fields(record)
        if field.name not in leave_out
    }
    given = TypedDict(f"{record.__name__}Options", annotations, total=False)  # type: ignore[misc, operator]
    return Annotated[given, Parameter(name="*")]


def _option(field: dataclasses.Field[Any]) -> str | None:
    """The option's name where it is not the field's, because Python has other plans with that word."""
    name: str | None = field.metadata.get("option")
    return name


def _help(description: str | None, field: dataclasses.Field[Any]) -> str:
    text = " ".join((description or "").split())
    shown = field.default not in (dataclasses.MISSING, None, (), "") and not isinstance(field.default, bool)
    return f"{text} [default: {field.default}]" if shown else text
