"""Declared tools -> what the model may say next, one token mask at a time.

    TEXT ──section_begin──> SECTION ──call_begin──> HEADER ──argument_begin──> ARGUMENTS ──call_end──> CALLED
     │                                                 ^                                                 │
     │                                                 └───────────────────── call_begin ────────────────┤
     └──im_end, [EOS]────────────> OVER <──im_end── STOP <────────────────────section_end────────────────┘

Markers are control tokens: allowed, forbidden and recognised by id, so a marker spelled out in text stays text. The
header walks a trie of the canonical encodings of `functions.NAME:IDX`, so what is generated is token for token
what the template will print in the next turn. Arguments follow the tool's schema by llguidance; docs/numbers.md
has its mask times beside xgrammar's. Text costs nothing but a look at a mask made once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from baltoro.chat import schema
from baltoro.chat.messages import Json, Tool, ToolChoice
from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import EngineError, RequestError, SchemaError
from baltoro.structure import Document, Structure, Tag, Tagged

Mask = NDArray[np.bool_]  # (V,)

# A byte of llguidance's bit mask -> its eight flags, lowest bit first.
_FLAGS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.bool_)


class _Place(Enum):
    TEXT = auto()
    FIRST = auto()  # TEXT that must be empty: a call is required
    SECTION = auto()
    HEADER = auto()
    ARGUMENTS = auto()
    CALLED = auto()
    STOP = auto()
    OVER = auto()


class Grammar:
    """Compiles tools for one tokenizer and keeps what it compiled. Any thread may call `compile`."""

    def __init__(self, tokenizer: Tokenizer, *, cache_size: int = 256) -> None:
        """`cache_size`: compiled schemas kept, each some 100 kB; agents declare the same tools every turn."""
        self.tokenizer = tokenizer
        self._vocabulary = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer)),
            tokenizer.vocab_size,
            eos_token=tokenizer.tool_call_end,  # so the library itself says when the arguments may end
            slices=LLTokenizer.json_slices(),
        )
        self._matcher = lru_cache(cache_size)(self._compile_schema)
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
    ) -> ToolConstraint:
        """The constraint of one answer.

        `next_index`: the number of calls in the conversation so far, which the next call's id carries.
        `parallel`: more than one call in this answer. Without tools, or with choice none, only text is allowed.
        `endless`: text goes on behind [EOS] and <|im_end|>, as the request ignores them; behind calls only they come.
        """
        callable_tools: dict[str, _Parameters] = {}
        for place, tool in enumerate(tools):
            where = f"tools[{place}].function"
            if not tool.name or any(character.isspace() for character in tool.name):
                raise SchemaError(
                    f"a tool is named {tool.name!r}, expected a name without blanks", param=f"{where}.name"
                )
            if tool.name in callable_tools:
                raise SchemaError(f"two tools are named {tool.name!r}, expected different names", param=f"{where}.name")
            callable_tools[tool.name] = self._arguments(tool, f"{where}.parameters")
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
        must_call = tool_choice.mode in ("required", "named")
        return ToolConstraint(
            self, callable_tools, must_call=must_call, next_index=next_index, parallel=parallel, endless=endless
        )

    def only(self, ids: Iterable[int]) -> Mask:
        mask = np.zeros(self.tokenizer.vocab_size, np.bool_)
        mask[list(ids)] = True
        return mask

    def _arguments(self, tool: Tool, param: str) -> _Parameters:
        lowered = schema.lower(tool.parameters, tool=tool.name, param=param)
        try:  # in order: it is the order of the arguments
            return _Parameters(lowered, self._matcher(json.dumps(lowered, ensure_ascii=False)))
        except (ValueError, TypeError) as error:
            raise SchemaError(
                f"tool {tool.name!r}: its parameters cannot be compiled: {error}",
                hint="a simpler schema accepts the same arguments; describe the rest in words",
                param=param,
            ) from error

    def _compile_schema(self, text: str) -> LLMatcher:
        # As K2 writes JSON: at most one blank behind a colon or a comma. With unlimited blanks a weak model never ends.
        rules = LLMatcher.grammar_from_json_schema(
            text, overrides={"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
        )
        matcher = LLMatcher(self._vocabulary, rules, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error().partition("\n<state>")[0].strip())
        return matcher


class ToolConstraint:
    """Where one answer stands. Meets `engine.request.Constraint`; used by one thread at a time.

    No mask is ever empty, and each is valid until the next call of `mask`: read it, don't write to it.
    """

    def __init__(
        self,
        grammar: Grammar,
        tools: Mapping[str, _Parameters],
        *,
        must_call: bool,
        next_index: int,
        parallel: bool,
        endless: bool,
    ) -> None:
        self._grammar = grammar
        self._tools = tools
        self._place = _Place.FIRST if must_call else _Place.TEXT
        self._next_index = next_index
        self._parallel = parallel
        self._endless = endless
        self._header = _Header()
        self._arguments: LLMatcher | None = None
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
                return self._arguments_mask()
            case _Place.CALLED:
                return self._grammar.called_masks[self._parallel]
            case place:
                return self._grammar.masks[place]

    def advance(self, token: int) -> None:
        """Go on with a token that the last mask allowed."""
        t = self._grammar.tokenizer
        match self._place:
            case _Place.TEXT | _Place.FIRST if token == t.tool_calls_section_begin:
                self._place = _Place.SECTION
            case _Place.STOP if token in t.stop_ids:
                self._place = _Place.OVER
            case _Place.TEXT if token in t.stop_ids and not self._endless:
                self._place = _Place.OVER
            case _Place.SECTION | _Place.CALLED if token == t.tool_call_begin:
                self._place, self._header = _Place.HEADER, self._headers()
            case _Place.HEADER if token == t.tool_call_argument_begin:
                assert self._header.tool is not None
                self._place, self._begun = _Place.ARGUMENTS, self._header.tool
                self._arguments = self._tools[self._begun].matcher.deep_copy()
            case _Place.HEADER:
                self._header = self._header.then[token]
            case _Place.ARGUMENTS if token == t.tool_call_end:
                self._place, self._next_index = _Place.CALLED, self._next_index + 1
            case _Place.ARGUMENTS:
                assert self._arguments is not None
                self._begun = None
                if not self._arguments.consume_token(token):
                    raise EngineError(f"the grammar refused token {token}: {self._arguments.get_error()}")
            case _Place.CALLED if token == t.tool_calls_section_end:
                self._place = _Place.STOP
            case place:
                assert place in (_Place.TEXT, _Place.OVER), f"{token} at {place}"

    def forced(self, most: int) -> list[int]:
        """Up to `most` tokens that come next if the model spells as the tokenizer does; [] where it has a choice.

        A call that may end is taken to end, and to be the last.
        """
        t = self._grammar.tokenizer
        place, header, arguments = self._place, self._header, self._arguments
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
                case _Place.ARGUMENTS:
                    assert arguments is not None
                    found += arguments.compute_ff_tokens()
                    if found or not arguments.is_accepting():
                        break
                    found.append(t.tool_call_end)
                    place = _Place.CALLED
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
        if self._place is not _Place.TEXT or not self._tools:
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

    def _headers(self) -> _Header:
        """The trie of what may be called next."""
        root = _Header()
        for name in self._tools:
            node = root
            for token in self._grammar.tokenizer.encode(f"functions.{name}:{self._next_index}"):
                node = node.then.setdefault(token, _Header())
            node.tool = name
        return root

    def _arguments_mask(self) -> Mask:
        assert self._arguments is not None
        self._arguments.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._arguments.is_error():  # its mask would now end the arguments where they are
            raise EngineError(f"the grammar gave up: {self._arguments.get_error()}", hint="simplify the tool's schema")
        np.take(_FLAGS, self._bits.view(np.uint8), axis=0, out=self._flags, mode="clip")  # clip: no buffering
        return self._scratch


@dataclass(frozen=True, slots=True)
class _Parameters:
    """Of a tool."""

    schema: Mapping[str, Json]  # lowered
    matcher: LLMatcher  # at the beginning; copied for every call


@dataclass(slots=True)
class _Header:
    """A node of the trie of call ids."""

    then: dict[int, _Header] = field(default_factory=dict[int, "_Header"])
    tool: str | None = None  # the id is complete here


class _Vocabulary:
    """A Tokenizer as llguidance reads one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.tool_call_end
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = list(range(tokenizer.num_base, tokenizer.vocab_size))

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", errors="replace"))
