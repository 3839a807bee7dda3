"""A side of the inference race, in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from owngpt.bench.process import SideFailedError, SideProcess
from owngpt.bench.side import Prompt, SideSpec

__all__ = ["Rival", "SideFailedError"]


class Rival(SideProcess):
    """Open as soon as it has written one token."""

    def __init__(self, spec: SideSpec, first_prompt: Prompt, environment: Mapping[str, str] | None = None) -> None:
        """See :class:`owngpt.bench.process.SideProcess`."""
        self.spec = spec
        given = json.dumps({**spec.to_dict(), "first_prompt": list(first_prompt)})
        command = [sys.executable, "-m", "owngpt.bench.worker", given]
        super().__init__(spec.name, command, "write a first token", threads=spec.threads, environment=environment)
