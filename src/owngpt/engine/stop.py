"""Stop strings: found across token borders, and never shown, not even in part."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Lets text through up to the first stop string.

    An end of the text that could be the beginning of a stop string is held back until more text decides it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False
        """Whether a stop string was found; from then on nothing passes."""

    def push(self, piece: str) -> str:
        """Take the next piece of text; return what may be shown."""
        if not self._stops:
            return piece
        if self.matched:
            return ""
        text = self._held + piece
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self.matched, self._held = True, ""
            return text[: min(found)]
        split = len(text) - self._undecided(text)
        self._held = text[split:]
        return text[:split]

    def finish(self) -> str:
        """The text has ended: what was held back is only text."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
