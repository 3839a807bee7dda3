"""How fast a model runs here, beside what else is installed: every side in a process of its own, measured in turn."""

from __future__ import annotations
