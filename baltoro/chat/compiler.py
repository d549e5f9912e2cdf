"""JSON schemas of tools and answers -> compiled grammars over token ids, kept by what they say.

What a client sends is checked and lowered (schema.py), then compiled by llguidance. Agents send the same tools every
turn, so what was compiled is kept under a digest of the schema's text, in its order, for that is the order of the
arguments. docs/numbers.md has the times.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from baltoro.chat import schema
from baltoro.chat.messages import AnswerFormat, Json, Tool
from baltoro.chat.schema import Dropped, Subject
from baltoro.chat.template import as_dict
from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import SchemaError

MAX_TOOLS = 1024
MAX_CHARACTERS = 2**20  # of JSON, in all schemas of a request; Claude Code's 24 tools have 64,000
KEPT_SCHEMAS = 2 * MAX_TOOLS  # compiled ones, the least recently used go first
KEPT_CHARACTERS = 2 * MAX_CHARACTERS  # of all that are kept; each takes 25 to 50 bytes of memory, so 100 MB at most
MAX_DROPPED = 32  # keywords of one schema that may be dropped for not compiling; finding each takes compiling again,
MAX_TRIES = 300  # so often at most,
MAX_TRIED_CHARACTERS = 2**23  # and no more than this of long schemas: 3 s
MAX_LOGGED = 20  # keywords of one schema

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Compiled:
    schema: Mapping[str, Json]  # lowered
    matcher: LLMatcher  # at the beginning; copied for every use
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True, slots=True)
class Loosened:
    """A keyword of a request's schemas that is not enforced, since the server was told to be loose."""

    owner: str  # the tool, or the answer format's name
    path: str  # JSON pointer into its schema


class Compiler:
    """For one tokenizer. Any thread may call `tools` and `answer`."""

    def __init__(self, tokenizer: Tokenizer, *, loose: bool = False) -> None:
        """`loose`: what cannot be enforced is dropped, noted and logged, unless the client said `strict: true`."""
        self._loose = loose
        self._vocabulary = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer)),
            tokenizer.vocab_size,
            eos_token=tokenizer.tool_call_end,  # so the library itself says when a value may end
            slices=LLTokenizer.json_slices(),
        )
        self._kept: OrderedDict[bytes, tuple[Compiled, int]] = OrderedDict()  # digest -> grammar, characters
        self._characters = 0  # of all kept
        self._guard = threading.Lock()
        self.compiled = 0  # schemas, since the start

    def tools(self, tools: Sequence[Tool]) -> dict[str, Compiled]:
        """The arguments of every tool, by its name; all are checked before the first is compiled."""
        if len(tools) > MAX_TOOLS:
            raise SchemaError(f"tools has {len(tools)}, expected at most {MAX_TOOLS}", param="tools")
        names: set[str] = set()
        asked: list[tuple[Tool, Subject, str]] = []
        left = MAX_CHARACTERS
        for place, tool in enumerate(tools):
            where = f"tools[{place}].function"
            if not tool.name or any(character.isspace() for character in tool.name):
                raise SchemaError(
                    f"a tool is named {tool.name!r}, expected a name without blanks", param=f"{where}.name"
                )
            if tool.name in names:
                raise SchemaError(f"two tools are named {tool.name!r}, expected different names", param=f"{where}.name")
            names.add(tool.name)
            subject = Subject(
                name=f"tool {tool.name!r}", contents="its parameters", param=f"{where}.parameters", is_object=True
            )
            text = _text(tool.parameters, subject)
            left -= len(text)
            if left < 0:
                raise SchemaError(
                    f"the schemas of tools have more than {MAX_CHARACTERS} characters of JSON at {tool.name!r}",
                    hint="send fewer tools, or shorter descriptions",
                    param="tools",
                )
            asked.append((tool, subject, text))
        return {
            tool.name: self._get(tool.parameters, text, subject, loose=self._loose and not tool.strict)
            for tool, subject, text in asked
        }

    def answer(self, wanted: AnswerFormat) -> Compiled:
        """The whole text of an answer."""
        subject = Subject(name=wanted.name, contents="its schema", param=wanted.param, is_object=wanted.schema is None)
        text = _text(wanted.schema, subject)
        if len(text) > MAX_CHARACTERS:
            raise subject.error("", f"a schema of {len(text)} characters", f"at most {MAX_CHARACTERS}")
        return self._get(wanted.schema, text, subject, loose=self._loose and not wanted.strict)

    def _get(self, source: Json, text: str, subject: Subject, *, loose: bool) -> Compiled:
        key = sha256(f"{loose} {subject.is_object} {text}".encode()).digest()
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        tries = min(MAX_TRIES, MAX_TRIED_CHARACTERS // len(text))
        made = self._compile(source, subject, loose, tries)  # unguarded: others go on, at worst the same is made twice
        _tell(subject, made.dropped)
        with self._guard:
            self.compiled += 1
            if key not in self._kept:
                self._kept[key] = made, len(text)
                self._characters += len(text)
            while len(self._kept) > KEPT_SCHEMAS or self._characters > KEPT_CHARACTERS:
                _, (_, characters) = self._kept.popitem(last=False)
                self._characters -= characters
        return made

    def _compile(self, source: Json, subject: Subject, loose: bool, tries: int) -> Compiled:
        lowered = schema.lower(source, subject, loose=loose)
        try:
            return Compiled(lowered.schema, self._matcher(lowered.schema), lowered.dropped)
        except ValueError as error:
            first = error

        def fault(without: Mapping[str, str]) -> str | None:
            try:
                self._matcher(schema.lower(source, subject, loose=loose, without=without).schema)
            except ValueError as error:
                return str(error)
            return None

        faults = _culprits(lowered.fragile, fault, most=MAX_DROPPED if loose else 1, tries=tries)
        if faults is None or not loose:
            path, reason = next(iter((faults or {"": str(first)}).items()))
            raise SchemaError(
                f"{subject.name}: {f'{path} in ' if path else ''}{subject.contents} cannot be compiled: {reason}",
                hint="a simpler schema accepts the same values; describe the rest in words",
                param=subject.param,
            ) from first
        lowered = schema.lower(source, subject, loose=True, without=faults)
        return Compiled(lowered.schema, self._matcher(lowered.schema), lowered.dropped)

    def _matcher(self, lowered: Mapping[str, Json]) -> LLMatcher:
        # As K2 writes JSON: at most one blank behind a colon or a comma. With unlimited blanks a weak model never ends.
        rules = LLMatcher.grammar_from_json_schema(
            json.dumps(lowered, ensure_ascii=False, default=as_dict),  # in order: it is the order of the arguments
            overrides={"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"},
        )
        matcher = LLMatcher(self._vocabulary, rules, log_level=0)
        if matcher.is_error():
            raise ValueError(" ".join(matcher.get_error().partition("\n<state>")[0].split()))
        return matcher


def _culprits(
    suspects: Sequence[str], fault: Callable[[Mapping[str, str]], str | None], *, most: int, tries: int
) -> dict[str, str] | None:
    """Which suspects cannot stay, and why: the rest compiles. Found by halving, so few compilations show few faults.

    fault: what is wrong without these. The search ends behind `most`. None: none of them is to blame, there are more,
    or `tries` calls of `fault` do not show them.
    """
    out = dict.fromkeys(suspects, "")
    if fault(out) is not None:
        return None
    guilty: dict[str, str] = {}
    groups = [list(suspects)] if suspects else []
    while groups:
        if (tries := tries - 1) <= 0:
            return None
        group = groups.pop()
        back = set(group)
        rest = {each: reason for each, reason in out.items() if each not in back}
        reason = fault(rest)
        if reason is None:
            out = rest
        elif len(group) > 1:
            middle = len(group) // 2
            groups += [group[middle:], group[:middle]]
        elif most == 1:
            return {group[0]: reason}
        elif len(guilty) == most:
            return None
        else:
            guilty[group[0]] = out[group[0]] = reason
    return guilty


def _tell(subject: Subject, dropped: Sequence[Dropped]) -> None:
    for each in dropped[:MAX_LOGGED]:
        path = json.dumps(each.path, ensure_ascii=False)[1:-1]  # names in it are the client's: no line breaks
        _log.warning("%s: %s in %s is not enforced: %s", subject.name, path, subject.contents, each.reason)
    if len(dropped) > MAX_LOGGED:
        _log.warning("%s: nor are %d more keywords", subject.name, len(dropped) - MAX_LOGGED)


def _text(source: Json, subject: Subject) -> str:
    try:
        return json.dumps(source, ensure_ascii=False, default=as_dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"{subject.name}: {subject.contents} cannot be written as JSON: {error}", param=subject.param
        ) from error


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
