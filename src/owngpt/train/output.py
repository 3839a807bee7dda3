"""Where a run goes: a folder that is named or chosen, and that nothing else is in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from owngpt.config.run_record import RUN_FILE
from owngpt.errors import OwnGPTError, UsageError
from owngpt.train.checkpoint import step_of

DEFAULT_PARENT = Path("runs")
RUN = "run"
CHECKPOINTS = "checkpoints"


def default_output(sources: Sequence[str], corpus: str | None) -> Path:
    """``runs/NAME`` after the first source, or the first of NAME-2, NAME-3 … that does not exist: nothing is overwritten."""
    name = _name_of(sources[0]) if sources else corpus or ""
    return unused(DEFAULT_PARENT / (name or "model"))


def unused(wanted: Path) -> Path:
    """``wanted``, or the first of wanted-2, wanted-3 … that does not exist."""
    number, folder = 1, wanted
    while folder.exists() or folder.is_symlink():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def check_output(folder: Path) -> None:
    """The folder must be new, empty, or hold no more than a run of ours that never got to a checkpoint.

    :raises UsageError: it holds something else; nothing there is touched.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; --output must name a folder")
    checkpoints = folder / RUN / CHECKPOINTS
    if checkpoints.exists() and any(checkpoints.iterdir()):
        raise UsageError(f"{folder} already holds a run; go on with --resume, or choose another output folder")
    foreign = sorted(path.name for path in folder.iterdir() if path.name != RUN)
    if foreign:
        raise UsageError(f"{folder} already holds {foreign[0]}; choose a new or empty output folder")


def folder_of_checkpoint(path: Path) -> Path:
    """The output folder that a checkpoint ``OUT/run/checkpoints/step-…`` belongs to."""
    absolute = path.absolute()
    if absolute.parent.name != CHECKPOINTS or absolute.parent.parent.name != RUN:
        raise UsageError(f"{path} is not a checkpoint of a run; --resume-from takes OUT/{RUN}/{CHECKPOINTS}/step-…")
    parents = path.parents
    return parents[2] if len(parents) > 2 else absolute.parents[2]


def folder_to_resume(output: str | Path | None, checkpoint: Path | None) -> Path:
    """The output folder of the run that ``--resume`` or ``--resume-from`` means.

    :raises UsageError: none is named, the two do not belong together, or there is no run.
    """
    if output is None and checkpoint is None:
        raise UsageError("--resume does not say which run to go on with; name its folder with --output")
    folder = folder_of_checkpoint(checkpoint) if checkpoint else Path(str(output))
    if checkpoint and output is not None and folder.resolve() != Path(output).resolve():
        raise UsageError(f"{checkpoint} is not a checkpoint of {output}; leave --output out, or name one of its own checkpoints")
    if checkpoint:
        step_of(checkpoint)
    if not (folder / RUN / RUN_FILE).exists():
        raise UsageError(f"{folder} holds no run to resume (no {RUN}/{RUN_FILE}); start one without --resume")
    return folder


@contextmanager
def removed_on_failure(folder: Path, described: Path) -> Iterator[None]:
    """When a run is refused before ``described`` (its run.yaml) exists, the folders that it made are taken away again."""
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        yield
    except OwnGPTError:
        if new and not described.exists():
            shutil.rmtree(folder, ignore_errors=True)
            for parent in new[1:]:
                with suppress(OSError):  # no longer empty: others have used it meanwhile
                    parent.rmdir()
        raise


def _name_of(source: str) -> str:
    path = Path(source).expanduser()
    path = path.resolve() if path.exists() else path
    return path.stem if path.is_file() else path.name
