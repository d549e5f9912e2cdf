"""Stop strings: cut a stream of text in front of the first of them, and hold back as little as that takes."""

from __future__ import annotations

from collections.abc import Sequence

from baltoro.errors import RequestError


class StopStrings:
    """Feeds on pieces of text. However the text is cut into pieces, what comes out joined is the same.

    The string that is complete first ends the text; of those complete at once, the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise RequestError("stop has an empty string, expected at least one character", param="stop")
        self.found: str | None = None  # the stop string that ended the text
        self._stops = stops
        self._held = ""  # may be the beginning of a stop string

    def push(self, text: str) -> str:
        """What is certain to belong to the text; nothing once a stop string was found."""
        if self.found is not None:
            return ""
        text = self._held + text
        matches = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            _, at, self.found = min(matches)
            self._held = ""
            return text[:at]
        longest = max((_overlap(text, stop) for stop in self._stops), default=0)
        ready = len(text) - longest
        self._held = text[ready:]
        return text[:ready]

    def flush(self) -> str:
        """What was held back in vain: the text is over, or something else than text follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop`, short of all of it, that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
