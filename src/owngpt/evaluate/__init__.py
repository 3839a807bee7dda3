"""How good a model is: bits per byte on text it never saw."""

from __future__ import annotations
