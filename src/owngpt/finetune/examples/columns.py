"""Which columns of a file are meant by the fields of a layout, where a person or a description says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from owngpt.errors import UsageError
from owngpt.finetune.examples.fault import Fault
from owngpt.finetune.examples.fields import SPELLINGS, Fields


@dataclass(frozen=True)
class Columns:
    """A field's name to a column's, as in --columns prompt=frage,completion=antwort."""

    named: Mapping[str, str] = field(default_factory=dict)
    only: bool = False
    """Columns that are not named here are left aside."""

    def fields(self, values: Any) -> Fields:
        """The values of a row by field, or by column in lower case, without those that are None.

        Raises:
            Fault: the row is no object.
        """
        if isinstance(values, list) and values and isinstance(values[0], Mapping) and not self.named:
            values = {"messages": values}  # a bare conversation
        elif isinstance(values, str) and not self.named:
            values = {"text": values}
        if not isinstance(values, Mapping):
            raise Fault("the row is no object", 'write it as {"column": value, …}')
        fields = {str(name).strip().lower(): value for name, value in values.items() if value is not None}
        if not self.named:
            return fields
        taken = {name: fields[column.lower()] for name, column in self.named.items() if column.lower() in fields}
        if self.only:
            return taken
        meant = {column.lower() for column in self.named.values()}
        return {**{name: value for name, value in fields.items() if name not in meant}, **taken}


def columns_from(named: Mapping[str, str] | None) -> Columns:
    """The columns that a person names.

    Raises:
        UsageError: no layout has such a field.
    """
    for name, column in (named or {}).items():
        if name not in SPELLINGS:
            raise UsageError(
                f"--columns names {name!r}, which no layout has; write FIELD=COLUMN with a field out of {', '.join(SPELLINGS)}"
            )
        if not column.strip():
            raise UsageError(f"--columns gives no column for {name}; write {name}=COLUMN")
    return Columns({name: column.strip() for name, column in (named or {}).items()})
