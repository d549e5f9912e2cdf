"""K2's answer as it comes -> Deltas: text, call begun, piece of arguments, call ended.

    TEXT ──section_begin──> SECTION ──call_begin──> HEADER ──argument_begin──> ARGUMENTS
     ^  ──────call_begin (no section)──────────────>                               │
     └──section_end── SECTION <────────────────call_end────────────────────────────┘

Whatever the model does wrong, a call ends only when it is whole: CallEnded comes with its end marker, or without it if
the arguments are complete JSON. Text inside a section is noise; outside it is content. Markers inside a JSON string
are text. `Parser` knows markers by token id, so a marker that is merely spelled out stays text; `TextParser` reads
engines that give no ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from baltoro.chat.messages import ArgumentsDelta, CallBegun, CallEnded, Delta, TextDelta, ToolCall
from baltoro.chat.tokenizer import Detokenizer, Tokenizer


class _State(Enum):
    TEXT = auto()
    SECTION = auto()
    HEADER = auto()
    ARGUMENTS = auto()


class _Marker(Enum):
    SECTION_BEGIN = "<|tool_calls_section_begin|>"
    SECTION_END = "<|tool_calls_section_end|>"
    CALL_BEGIN = "<|tool_call_begin|>"
    ARGUMENT_BEGIN = "<|tool_call_argument_begin|>"
    CALL_END = "<|tool_call_end|>"


_END_OF_TURN = "<|im_end|>"
# The technical report's spelling; some engines' texts have it. As token ids there is only the plural.
_SPELLINGS = {marker.value: marker for marker in _Marker} | {
    "<|tool_call_section_begin|>": _Marker.SECTION_BEGIN,
    "<|tool_call_section_end|>": _Marker.SECTION_END,
}
_SPELLED = re.compile("(" + "|".join(map(re.escape, [*_SPELLINGS, _END_OF_TURN])) + ")")

_PREFIX = "functions."
_INDEXED = re.compile(r"(\S+?)\s*:\s*([0-9]{1,9})")
_BARE = re.compile(r"(?![0-9]+\Z)\$?[\w-]{1,64}")  # K2 forgot the index; a bare number has no name to call


@dataclass(frozen=True, slots=True, kw_only=True)
class IncompleteCall:
    """A call that must not be dispatched: cut off, or its header names nothing."""

    id: str  # the header as generated, trimmed
    name: str | None  # None: the header has no name
    arguments: str


class Folded(NamedTuple):
    """A whole answer."""

    content: str | None  # None: no text at all
    calls: tuple[ToolCall, ...]
    incomplete: tuple[IncompleteCall, ...]


def fold(deltas: Iterable[Delta], malformed: Iterable[IncompleteCall] = ()) -> Folded:
    """Put an answer together again. `malformed`: the parser's, for calls that never got as far as CallBegun."""
    text: list[str] = []
    begun: dict[int, CallBegun] = {}
    arguments: dict[int, list[str]] = {}
    ended: set[int] = set()
    for delta in deltas:
        match delta:
            case TextDelta():
                text.append(delta.text)
            case CallBegun():
                begun[delta.index] = delta
                arguments[delta.index] = []
            case ArgumentsDelta():
                arguments[delta.index].append(delta.text)
            case CallEnded():
                ended.add(delta.index)
            case _:  # Finished says nothing about the message
                pass
    whole = {index: "".join(pieces) for index, pieces in arguments.items()}
    calls = [ToolCall(id=begun[i].id, name=begun[i].name, arguments=whole[i]) for i in begun if i in ended]
    cut = [IncompleteCall(id=begun[i].id, name=begun[i].name, arguments=whole[i]) for i in begun if i not in ended]
    return Folded("".join(text) or None, tuple(calls), (*cut, *malformed))


class Parser:
    """Token ids, one at a time. The same ids give the same deltas, up to how text is cut into pieces."""

    def __init__(
        self, tokenizer: Tokenizer, *, next_index: int = 0, renumber: bool = False, endless: bool = False
    ) -> None:
        """`next_index`: the number of calls in the conversation so far, for calls that come without one.
        `renumber`: give every call the next index, whatever the model wrote, so that ids are unique.
        `endless`: [EOS] and <|im_end|> end nothing, what follows them counts."""
        self._machine = _Machine(next_index, renumber)
        self._detokenizer = Detokenizer(tokenizer)
        self._markers = {tokenizer.special_id(marker.value): marker for marker in _Marker}
        self._stop_ids = frozenset[int]() if endless else tokenizer.stop_ids
        self._num_base = tokenizer.num_base
        self._tokenizer = tokenizer

    @property
    def malformed(self) -> list[IncompleteCall]:
        """Calls whose header never became a CallBegun. No delta tells of them."""
        return self._machine.malformed

    def push(self, token: int) -> list[Delta]:
        """What `token` adds. A stop token ends the answer; everything after it is ignored."""
        if token < self._num_base:
            return self._machine.text(self._detokenizer.push(token))
        if token in self._stop_ids:
            return self.finish()
        deltas = self._machine.text(self._detokenizer.flush())
        marker = self._markers.get(token)
        if marker is not None:
            return deltas + self._machine.marker(marker)
        name = self._tokenizer.decode([token])
        # Any other control token is text in a string, and nowhere else part of an answer.
        return deltas + self._machine.text(name) if self._machine.in_string else deltas

    def finish(self) -> list[Delta]:
        """No more tokens: give out what is held back and settle an open call. A second time it gives nothing."""
        return self._machine.text(self._detokenizer.flush()) + self._machine.end()


class TextParser:
    """The same for text in which markers are spelled out, cut anywhere. Only what may become a marker is held back."""

    def __init__(self, *, next_index: int = 0, renumber: bool = False) -> None:
        self._machine = _Machine(next_index, renumber)
        self._held = ""

    @property
    def malformed(self) -> list[IncompleteCall]:
        return self._machine.malformed

    def push(self, text: str) -> list[Delta]:
        *pieces, rest = _SPELLED.split(self._held + text)
        deltas = [delta for piece in pieces for delta in self._piece(piece)]
        cut = rest.rfind("<")  # no marker has a second one
        if cut < 0 or not any(spelling.startswith(rest[cut:]) for spelling in (*_SPELLINGS, _END_OF_TURN)):
            cut = len(rest)
        self._held = rest[cut:]
        return deltas + self._machine.text(rest[:cut])

    def finish(self) -> list[Delta]:
        held, self._held = self._held, ""
        return self._machine.text(held) + self._machine.end()

    def _piece(self, piece: str) -> list[Delta]:
        if piece in _SPELLINGS:
            return self._machine.marker(_SPELLINGS[piece], piece)
        if piece == _END_OF_TURN and not self._machine.in_string:
            return self._machine.end()
        return self._machine.text(piece)


class _Machine:
    """The state behind both: pieces of text and markers in, deltas out."""

    def __init__(self, next_index: int, renumber: bool) -> None:
        self.malformed: list[IncompleteCall] = []
        self.in_string = False  # inside a JSON string of the arguments
        self._escaped = False  # behind a backslash in that string
        self._state = _State.TEXT
        self._over = False
        self._in_section = False
        self._after_calls = False  # only blanks so far since the last call or section
        self._blanks = ""  # held back: they count only if something follows
        self._header = ""
        self._arguments: list[str] = []
        self._index: int | None = None  # of the open call in this turn; None: its header names nothing
        self._num_begun = 0
        self._next_index = next_index
        self._renumber = renumber

    def text(self, text: str) -> list[Delta]:
        if not text or self._over or self._state is _State.SECTION:
            return []
        if self._state is _State.HEADER:
            self._header += text
            return []
        if self._state is _State.ARGUMENTS:
            return self._argument_text(text)
        if self._after_calls and text.isspace():
            self._blanks += text
            return []
        text, self._blanks, self._after_calls = self._blanks + text, "", False
        return [TextDelta(text)]

    def marker(self, marker: _Marker, spelling: str | None = None) -> list[Delta]:
        if self._over:
            return []
        if self.in_string:
            return self.text(spelling or marker.value)
        if marker is _Marker.ARGUMENT_BEGIN:
            return self._begin_call() if self._state is _State.HEADER else []
        deltas = self._close(ended=marker is _Marker.CALL_END)
        if marker is _Marker.CALL_BEGIN:
            self._state, self._header = _State.HEADER, ""
        elif marker is _Marker.SECTION_BEGIN:
            self._state, self._in_section = _State.SECTION, True
        elif marker is _Marker.SECTION_END and self._in_section:
            self._state, self._in_section, self._after_calls = _State.TEXT, False, True
        if self._state is not _State.TEXT:
            self._blanks = ""  # between calls they are layout
        return deltas

    def end(self) -> list[Delta]:
        deltas = [] if self._over else self._close(ended=False)
        self._over = True
        return deltas

    def _begin_call(self) -> list[Delta]:
        self._state, self._arguments = _State.ARGUMENTS, []
        prefix, name, number = _read_header(self._header)
        if name is None:
            self._index = None
            return []
        if number is None or self._renumber:
            prefix, number = _PREFIX, str(self._next_index)
        self._next_index = max(self._next_index, int(number) + 1)
        self._index = self._num_begun
        self._num_begun += 1
        return [CallBegun(self._index, f"{prefix}{name}:{number}", name)]

    def _argument_text(self, text: str) -> list[Delta]:
        """Raw but trimmed: blanks outside strings wait until something follows them."""
        for character in text:
            if self._escaped:
                self._escaped = False
            elif character == '"':
                self.in_string = not self.in_string
            elif character == "\\":
                self._escaped = self.in_string
        text = self._blanks + text
        ready = text if self.in_string else text.rstrip()
        self._blanks = text[len(ready) :]
        if not self._arguments:
            ready = ready.lstrip()
        if not ready:
            return []
        self._arguments.append(ready)
        return [] if self._index is None else [ArgumentsDelta(self._index, ready)]

    def _close(self, *, ended: bool) -> list[Delta]:
        """Settle the open call, if there is one. `ended`: by its own end marker."""
        deltas: list[Delta] = []
        if self._state is _State.HEADER:
            self._give_up("")
        elif self._state is _State.ARGUMENTS:
            arguments = "".join(self._arguments)
            if self._index is None:
                self._give_up(arguments)
            elif ended and not arguments:
                deltas = [ArgumentsDelta(self._index, "{}"), CallEnded(self._index)]
            elif ended or _is_complete(arguments):
                deltas = [CallEnded(self._index)]
        else:
            return []
        self._state = _State.SECTION if self._in_section else _State.TEXT
        self._after_calls, self._blanks = True, ""
        return deltas

    def _give_up(self, arguments: str) -> None:
        _, name, _ = _read_header(self._header)
        self.malformed.append(IncompleteCall(id=self._header.strip(), name=name, arguments=arguments))


def _read_header(header: str) -> tuple[str, str | None, str | None]:
    """Prefix, name, index of `functions.NAME:IDX`; NAME may hold dots and colons, prefix and index may be missing."""
    header = header.strip()
    rest = header.removeprefix(_PREFIX)
    prefix = header[: len(header) - len(rest)]
    indexed = _INDEXED.fullmatch(rest)
    if indexed:
        return prefix, indexed[1], indexed[2]
    return prefix, rest if _BARE.fullmatch(rest) else None, None


def _is_complete(arguments: str) -> bool:
    """A number may go on; only a closed object or array is known to be whole."""
    try:
        return isinstance(json.loads(arguments), (dict, list))
    except (ValueError, RecursionError):
        return False
