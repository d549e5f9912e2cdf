"""Declared tools and the answer's format -> what the model may say next, one token mask at a time.

    TEXT ──section_begin──> SECTION ──call_begin──> HEADER ──argument_begin──> ARGUMENTS ──call_end──> CALLED
     │                                                 ^                                                 │
     │                                                 └───────────────────── call_begin ────────────────┤
     └──im_end, [EOS]────────────> OVER <──im_end── STOP <────────────────────section_end────────────────┘

Markers are control tokens: allowed, forbidden and recognised by id, so a marker spelled out in text stays text. The
header walks a trie of the canonical encodings of `functions.NAME:IDX`, so what is generated is token for token
what the template will print in the next turn. Arguments follow the tool's schema (compiler.py). Text costs nothing but
a look at a mask made once; where it has a format, it is JSON by its schema from the first character to the last, and
calls may come in its place, not behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from baltoro.chat.compiler import Compiled, Compiler, Loosened
from baltoro.chat.messages import AnswerFormat, Tool, ToolChoice
from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import EngineError, RequestError
from baltoro.structure import Document, Structure, Tag, Tagged

Mask = NDArray[np.bool_]  # (V,)

# A byte of llguidance's bit mask -> its eight flags, lowest bit first.
_FLAGS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.bool_)


class _Place(Enum):
    TEXT = auto()
    FIRST = auto()  # TEXT that must be empty: a call is required
    FORMATTED = auto()  # TEXT that has a format
    SECTION = auto()
    HEADER = auto()
    ARGUMENTS = auto()
    CALLED = auto()
    STOP = auto()
    OVER = auto()


class Grammar:
    """Makes constraints for one tokenizer. Any thread may call `compile`."""

    def __init__(self, tokenizer: Tokenizer, *, loose: bool = False) -> None:
        """`loose`: see Compiler"""
        self.tokenizer = tokenizer
        self.compiler = Compiler(tokenizer, loose=loose)
        t = tokenizer
        text = self.only([*range(t.num_base), *t.stop_ids])
        text_or_call = self.only([*range(t.num_base), *t.stop_ids, t.tool_calls_section_begin])
        self.text_masks = {False: text, True: text_or_call}  # may a section of calls begin?
        self.called_masks = {  # parallel calls?
            False: self.only([t.tool_calls_section_end]),
            True: self.only([t.tool_calls_section_end, t.tool_call_begin]),
        }
        self.masks = {
            _Place.FIRST: self.only([t.tool_calls_section_begin]),
            _Place.SECTION: self.only([t.tool_call_begin]),
            _Place.STOP: self.only([t.im_end]),
            _Place.OVER: self.only(t.stop_ids),
        }

    def compile(
        self,
        tools: Sequence[Tool],
        tool_choice: ToolChoice,
        *,
        next_index: int,
        parallel: bool = True,
        endless: bool = False,
        answer_format: AnswerFormat | None = None,
    ) -> ToolConstraint:
        """The constraint of one answer.

        `next_index`: the number of calls in the conversation so far, which the next call's id carries.
        `parallel`: more than one call in this answer. Without tools, or with choice none, only text is allowed.
        `endless`: text goes on behind [EOS] and <|im_end|>, as the request ignores them; behind calls only they come.
        """
        callable_tools = self.compiler.tools(tools)
        formatted = None if answer_format is None else self.compiler.answer(answer_format)
        if formatted is not None and endless:
            raise RequestError("ignore_eos is set: behind JSON nothing but the end may come", param="ignore_eos")
        if tool_choice.mode == "named":
            if tool_choice.name not in callable_tools:
                names = ", ".join(callable_tools) or "none"
                raise RequestError(
                    f"tool_choice names {tool_choice.name!r}, expected a declared tool: {names}", param="tool_choice"
                )
            callable_tools = {tool_choice.name: callable_tools[tool_choice.name]}
        elif tool_choice.mode == "required" and not tools:
            raise RequestError("tool_choice is required, expected at least one tool to call", param="tool_choice")
        elif tool_choice.mode == "none":
            callable_tools = {}
        if tool_choice.allowed is not None:
            callable_tools = {name: callable_tools[name] for name in tool_choice.allowed}
        must_call = tool_choice.mode in ("required", "named")
        return ToolConstraint(
            self,
            callable_tools,
            must_call=must_call,
            next_index=next_index,
            parallel=parallel and tool_choice.mode != "named",
            endless=endless,
            formatted=formatted,
        )

    def loosened(self, tools: Sequence[Tool], answer_format: AnswerFormat | None) -> list[Loosened]:
        """What of these schemas is not enforced; [] unless loose."""
        owners = list(self.compiler.tools(tools).items())
        if answer_format is not None:
            owners.append((answer_format.name, self.compiler.answer(answer_format)))
        return [Loosened(owner, each.path) for owner, compiled in owners for each in compiled.dropped]

    def only(self, ids: Iterable[int]) -> Mask:
        mask = np.zeros(self.tokenizer.vocab_size, np.bool_)
        mask[list(ids)] = True
        return mask


class ToolConstraint:
    """Where one answer stands. Meets `engine.request.Constraint`; used by one thread at a time.

    No mask is ever empty, and each is valid until the next call of `mask`: read it, don't write to it.
    """

    def __init__(
        self,
        grammar: Grammar,
        tools: Mapping[str, Compiled],
        *,
        must_call: bool,
        next_index: int,
        parallel: bool,
        endless: bool,
        formatted: Compiled | None,
    ) -> None:
        self._grammar = grammar
        self._tools = tools
        self._place = _Place.FIRST if must_call else _Place.TEXT if formatted is None else _Place.FORMATTED
        self._next_index = next_index
        self._parallel = parallel
        self._endless = endless
        self._header = _Header()
        self._root: tuple[int, _Header] | None = None  # of the trie, and the index it ends with
        self._matcher: LLMatcher | None = None  # of the arguments, or of formatted text
        self._formatted = formatted
        if self._place is _Place.FORMATTED and formatted is not None:
            self._matcher = formatted.matcher.deep_copy()
        self._silent = True  # no token has been said
        self._begun: str | None = None  # the tool whose arguments are next, none of their tokens said
        words = -(-grammar.tokenizer.vocab_size // 32)
        self._bits = np.zeros(words, np.int32)  # llguidance writes here
        self._flags = np.zeros((words * 4, 8), np.bool_)
        self._scratch: Mask = self._flags.reshape(-1)[: grammar.tokenizer.vocab_size]

    def mask(self) -> Mask:
        match self._place:
            case _Place.TEXT:
                return self._grammar.text_masks[bool(self._tools)]
            case _Place.HEADER:
                self._scratch.fill(False)
                self._scratch[list(self._header.then)] = True
                self._scratch[self._grammar.tokenizer.tool_call_argument_begin] = self._header.tool is not None
                return self._scratch
            case _Place.ARGUMENTS:
                return self._json_mask()
            case _Place.FORMATTED:
                return self._formatted_mask()
            case _Place.CALLED:
                return self._grammar.called_masks[self._parallel]
            case place:
                return self._grammar.masks[place]

    def advance(self, token: int) -> None:
        """Go on with a token that the last mask allowed."""
        t = self._grammar.tokenizer
        self._silent = False
        match self._place:
            case _Place.TEXT | _Place.FIRST | _Place.FORMATTED if token == t.tool_calls_section_begin:
                self._place = _Place.SECTION
            case _Place.STOP | _Place.FORMATTED if token in t.stop_ids:
                self._place = _Place.OVER
            case _Place.TEXT if token in t.stop_ids and not self._endless:
                self._place = _Place.OVER
            case _Place.SECTION | _Place.CALLED if token == t.tool_call_begin:
                self._place, self._header = _Place.HEADER, self._headers()
            case _Place.HEADER if token == t.tool_call_argument_begin:
                assert self._header.tool is not None
                self._place, self._begun = _Place.ARGUMENTS, self._header.tool
                self._matcher = self._tools[self._begun].matcher.deep_copy()
            case _Place.HEADER:
                self._header = self._header.then[token]
            case _Place.ARGUMENTS if token == t.tool_call_end:
                self._place, self._next_index = _Place.CALLED, self._next_index + 1
            case _Place.ARGUMENTS | _Place.FORMATTED:
                assert self._matcher is not None
                self._begun = None
                if not self._matcher.consume_token(token):
                    raise EngineError(f"the grammar refused token {token}: {self._matcher.get_error()}")
            case _Place.CALLED if token == t.tool_calls_section_end:
                self._place = _Place.STOP
            case place:
                assert place in (_Place.TEXT, _Place.OVER), f"{token} at {place}"

    def forced(self, most: int) -> list[int]:
        """Up to `most` tokens that come next if the model spells as the tokenizer does; [] where it has a choice.

        A call that may end is taken to end, and to be the last; so is a value that is the whole answer.
        """
        t = self._grammar.tokenizer
        place, header, arguments = self._place, self._header, self._matcher
        found: list[int] = []
        while len(found) < most:
            match place:
                case _Place.FIRST:
                    found.append(t.tool_calls_section_begin)
                    place = _Place.SECTION
                case _Place.SECTION:
                    found.append(t.tool_call_begin)
                    place, header = _Place.HEADER, self._headers()
                case _Place.HEADER if header.tool is None and len(header.then) == 1:
                    ((token, header),) = header.then.items()
                    found.append(token)
                case _Place.HEADER if header.tool is not None and not header.then:
                    found.append(t.tool_call_argument_begin)
                    place, arguments = _Place.ARGUMENTS, self._tools[header.tool].matcher
                case _Place.ARGUMENTS | _Place.FORMATTED:
                    assert arguments is not None
                    if place is _Place.FORMATTED and self._may_call_instead:
                        break
                    found += arguments.compute_ff_tokens()
                    if found or not arguments.is_accepting():
                        break
                    found.append(t.tool_call_end if place is _Place.ARGUMENTS else t.im_end)
                    place = _Place.CALLED if place is _Place.ARGUMENTS else _Place.OVER
                case _Place.CALLED:
                    found.append(t.tool_calls_section_end)
                    place = _Place.STOP
                case _Place.STOP:
                    found.append(t.im_end)
                    break
                case _:
                    break
        return found[:most]

    def describe(self) -> Structure | None:
        """What may follow, for an engine with a grammar of its own; None in the middle of a call.

        It says less than the masks: not in which tokens, and of a second call in the same section nothing.
        """
        if self._place is _Place.ARGUMENTS and self._begun is not None:
            return Document(schema=self._tools[self._begun].schema)
        if self._place is _Place.FORMATTED and self._silent and not self._tools:
            assert self._formatted is not None
            return Document(schema=self._formatted.schema)
        # Whether calls or formatted text come, no engine's grammar can leave open: of both, it hears of the calls.
        if not self._tools or not (self._place is _Place.TEXT or self._may_call_instead):
            return None
        t = self._grammar.tokenizer
        section, call, argument, end = (
            t.token_bytes(token).decode()
            for token in (t.tool_calls_section_begin, t.tool_call_begin, t.tool_call_argument_begin, t.tool_call_end)
        )
        tags = (
            Tag(begin=f"{section}{call}functions.{name}:{self._next_index}{argument}", schema=tool.schema, end=end)
            for name, tool in self._tools.items()
        )
        return Tagged(trigger=section, tags=tuple(tags))

    @property
    def _may_call_instead(self) -> bool:
        return self._place is _Place.FORMATTED and self._silent and bool(self._tools)

    def _headers(self) -> _Header:
        """The trie of what may be called next. Made once a call: of 300 tools it takes 3 ms."""
        if self._root is None or self._root[0] != self._next_index:
            root = _Header()
            for name in self._tools:
                node = root
                for token in self._grammar.tokenizer.encode(f"functions.{name}:{self._next_index}"):
                    node = node.then.setdefault(token, _Header())
                node.tool = name
            self._root = self._next_index, root
        return self._root[1]

    def _json_mask(self) -> Mask:
        assert self._matcher is not None
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():  # its mask would now end the arguments where they are
            raise EngineError(f"the grammar gave up: {self._matcher.get_error()}", hint="simplify the tool's schema")
        np.take(_FLAGS, self._bits.view(np.uint8), axis=0, out=self._flags, mode="clip")  # clip: no buffering
        return self._scratch

    def _formatted_mask(self) -> Mask:
        t, mask = self._grammar.tokenizer, self._json_mask()
        mask[list(t.stop_ids)] = mask[t.tool_call_end]  # the library's word for the end of a value
        mask[t.tool_call_end] = False
        mask[t.tool_calls_section_begin] = self._may_call_instead
        return mask


@dataclass(slots=True)
class _Header:
    """A node of the trie of call ids."""

    then: dict[int, _Header] = field(default_factory=dict[int, "_Header"])
    tool: str | None = None  # the id is complete here
