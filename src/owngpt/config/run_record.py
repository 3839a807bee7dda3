"""``run.yaml``: what a run was asked for and what was chosen for it, so that it can be resumed, repeated and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from owngpt.config import finetuning
from owngpt.config.checks import of_type, option
from owngpt.config.files import atomic_write_text
from owngpt.config.finetuning import FinetuneConfig
from owngpt.config.settings_file import fitted, load_settings
from owngpt.config.training import DEFAULT_MINUTES, DIALS, OF_A_MODEL, TrainConfig
from owngpt.errors import CheckpointError, UsageError

RUN_FILE = "run.yaml"
Verb = Literal["train", "finetune"]
Plan = TypeVar("Plan")
SETTINGS: dict[Verb, type] = {"train": TrainConfig, "finetune": FinetuneConfig}
"""What the settings of each kind of run are."""
_PARTS = ("sources", "settings", "plan")
_OF_THE_MODEL = ("layers", "hidden_size", "heads", "key_value_heads", "context_length", "dropout")


@dataclass(frozen=True)
class RunRecord:
    """The content of run.yaml, as plain values."""

    sources: list[str]
    settings: dict[str, Any]
    """The fields of TrainConfig or FinetuneConfig, None where the planner chose."""
    plan: dict[str, Any]
    """What it chose. Kept as it was written: a field that later versions added is not in it."""
    vocab_size: int | None = None
    """That a trained tokenizer was asked to have."""
    verb: Verb = "train"
    """Whose run it is."""
    model: str | None = None
    """What a fine-tuning began from."""

    def write(self, path: Path) -> RunRecord:
        """Writes the file, whole or not at all; returns the record as a reader will find it."""
        import yaml

        plain = json.loads(json.dumps(self.__dict__))
        atomic_write_text(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        return RunRecord(**plain)

    @classmethod
    def read(cls, path: Path, verb: Verb = "train") -> RunRecord:
        """The inverse of :meth:`write`.

        :raises CheckpointError: the file is missing, or is not what :meth:`write` left.
        :raises UsageError: it is the run of another verb.
        """
        record = cls._read(path)
        if record.verb != verb:
            raise UsageError(f"{path} is of `owngpt {record.verb}`; go on with it by that, or name another run")
        return record

    @classmethod
    def _read(cls, path: Path) -> RunRecord:
        try:
            values = load_settings(path)
            if not is_run(values):
                raise UsageError(f"it does not hold {', '.join(_PARTS)}")
            return cls.of(path, values)
        except UsageError as error:
            raise CheckpointError(
                f"{path} is damaged, and without it the run cannot go on ({error}); put a copy back or start a new run"
            ) from error

    @classmethod
    def of(cls, path: Path, values: dict[Any, Any]) -> RunRecord:
        """The record in ``values``, which were read from ``path``.

        :raises UsageError: a part has the wrong type.
        """
        sources, settings, plan = (values[name] for name in _PARTS)
        if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
            raise UsageError("its sources are not a list of paths")
        if not isinstance(settings, dict) or not isinstance(plan, dict):
            raise UsageError("its settings or its plan are not lines of `name: value`")
        size, verb, model = values.get("vocab_size"), values.get("verb", "train"), values.get("model")
        if verb not in get_args(Verb):
            raise UsageError(f"its verb is {verb!r}, not one of {', '.join(get_args(Verb))}")
        fitting = fitted(path, settings, SETTINGS[verb])
        return cls(
            sources, fitting, plan, size if isinstance(size, int) else None, verb, model if isinstance(model, str) else None
        )

    def read_plan(self, read: Callable[[dict[str, Any]], Plan], run_folder: Path) -> Plan:
        """The plan, as what made it reads it.

        :param run_folder: that the record was read from, for messages.
        :raises CheckpointError: it is not one that this version reads.
        """
        try:
            return read(self.plan)
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise CheckpointError(
                f"the plan in {run_folder / RUN_FILE} is damaged, or of another version of OwnGPT ({error}); put a copy back or "
                "start a new run"
            ) from error

    def check_same(self, given: dict[str, Any]) -> None:
        """A resumed run goes on as it began: an option that repeats a setting is welcome.

        :raises UsageError: an option says otherwise.
        """
        kept, chosen = asdict(SETTINGS[self.verb](**self.settings)), self.resolved_settings()
        for name, value in given.items():
            if value is not None and value not in (kept[name], chosen.get(name)):
                raise UsageError(
                    f"--{name.replace('_', '-')} {value} is {kept[name]} in this run; --resume goes on with the run's own "
                    "settings: leave it out, or start a new run"
                )

    def plan_hash(self) -> str:
        """SHA-256 of the plan as it is stored: the identity of a run stays what it was when later versions know more fields."""
        return hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()

    def resolved_settings(self) -> dict[str, Any]:
        """Settings that lead to the same run again: what was given, and what was chosen where nothing was given.

        :raises UsageError: the plan lacks something.
        """
        if self.verb == "finetune":
            return self._resolved_finetuning()
        try:
            model, optimizer, course = self.plan["model"], self.plan["optimizer"], self.plan["course"]
            own = {**{name: model[name] for name in _OF_THE_MODEL}, "vocab_size": self.vocab_size or model["vocab_size"]}
            if self.settings.get("from_model"):
                own = {name: value for name, value in own.items() if name not in OF_A_MODEL}
            chosen = {
                **own,
                "batch_size": self.plan["batch_size"],
                "accumulation": course["accumulation"],
                "learning_rate": optimizer["matrix_rate"],
                "weight_decay": optimizer["matrix_decay"],
                "optimizer": optimizer["kind"],
            }
        except (KeyError, TypeError) as error:
            raise UsageError(f"its plan lacks {error}") from error
        given = {name: value for name, value in self.settings.items() if value is not None}
        dial = {} if any(name in given for name in DIALS) else {"minutes": DEFAULT_MINUTES}
        return {**chosen, **dial, **given}

    def _resolved_finetuning(self) -> dict[str, Any]:
        try:
            recipe, shape = self.plan["recipe"], self.plan["shape"]
            chosen = {
                "method": recipe["method"],
                "lora": recipe["lora"] is not None,
                "learning_rate": recipe["optimizer"]["matrix_rate"],
                **{name: shape[name] for name in ("batch_size", "accumulation", "context_length")},
            }
        except (KeyError, TypeError) as error:
            raise UsageError(f"its plan lacks {error}") from error
        given = {name: value for name, value in self.settings.items() if value is not None}
        dial = {} if any(name in given for name in finetuning.DIALS) else {"minutes": finetuning.DEFAULT_MINUTES}
        return {**chosen, **dial, **given}


def checked_options(options: dict[str, Any], verb: Verb) -> dict[str, Any]:
    """The options of a run, each as the type that it has.

    :raises UsageError: one is not among the settings of such a run, or is of another type; the message says what it must be.
    """
    hints = get_type_hints(SETTINGS[verb])
    unknown = [name for name in options if name not in hints]
    if unknown:
        raise UsageError(f"{option(unknown[0])} is unknown; the options of `owngpt {verb}` are {', '.join(hints)}")
    return {
        name: of_type(name, fspath(value) if isinstance(value, PathLike) else value, hints[name])
        for name, value in options.items()
    }


def is_run(values: dict[Any, Any]) -> bool:
    """Whether what a YAML file holds is a run.yaml rather than a file of settings."""
    return all(name in values for name in _PARTS)


def read_configuration(path: Path, verb: Verb = "train") -> tuple[str | None, list[str], dict[str, Any]]:
    """Model, sources (none in a file of settings) and settings of ``--config``: a file of settings or the run.yaml of a run.

    :raises UsageError: the file cannot be used; the message says why.
    """
    values = load_settings(path)
    if not is_run(values):
        return None, [], fitted(path, values, SETTINGS[verb])
    try:
        record = RunRecord.of(path, values)
        if record.verb != verb:
            raise UsageError(f"it is of `owngpt {record.verb}`")
        return record.model, record.sources, record.resolved_settings()
    except UsageError as error:
        raise UsageError(f"{path} is not a whole {RUN_FILE} ({error}); name another one to --config") from error
