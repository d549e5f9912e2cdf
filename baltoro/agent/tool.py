"""A function that a model may call: its schema is made from its signature, its result is cut to a stated size."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import jsonschema.exceptions
import referencing.exceptions
from jsonschema.validators import Draft202012Validator
from referencing import Registry

from baltoro.chat.messages import Json, Tool
from baltoro.errors import BaltoroError, ToolError

RESULT_CHARS = 16_000  # some 4,000 tokens: eight of them fill a context of 32K
_NAME = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9_-]{1,64}")  # what K2's calls can spell
_WORDS: dict[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a call came to."""

    for_model: str
    for_user: str = ""  # one line; empty: the first one of `for_model`
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTool:
    """A declared function and what runs when it is called."""

    name: str
    description: str
    parameters: Mapping[str, Json]  # a JSON schema
    run: Callable[[dict[str, Json]], ToolResult]  # arguments that hold to the schema

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BaltoroError(
                f"a tool is named {self.name!r}", hint="1 to 64 letters, digits, _ and -, not digits alone"
            )

    @property
    def declared(self) -> Tool:
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return Tool(name=self.name, parameters=self.parameters, declaration={"type": "function", "function": function})

    def __call__(self, arguments: Json) -> ToolResult:
        """Whatever goes wrong in a tool is a result that the model can read, and no end of the episode."""
        if problem := _problem(self.parameters, arguments):
            return failure(f"{problem}. The call did not run.")
        try:
            return self.run(arguments)
        except ToolError as error:
            return failure(str(error))
        except OSError as error:
            return failure(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except Exception as error:  # a tool is anybody's code, and this is where theirs ends
            return failure(f"{type(error).__name__}: {error}")


def failure(text: str) -> ToolResult:
    return ToolResult(for_model=f"Error: {text}", failed=True)


def tool(function: Callable[..., ToolResult | str], *, name: str | None = None) -> AgentTool:
    """A tool of a typed function or method.

    Its docstring is the description; `Annotated[int, "what it means"]` describes a parameter. Types: str, int, float,
    bool, list[...], Literal[...], and `X | None` with a default of None. Text that it returns is its result.
    """

    def run(arguments: dict[str, Json]) -> ToolResult:
        result = function(**arguments)
        return result if isinstance(result, ToolResult) else ToolResult(for_model=result)

    return AgentTool(
        name=function.__name__ if name is None else name,
        description=inspect.cleandoc(function.__doc__ or ""),
        parameters=schema_of(function),
        run=run,
    )


def schema_of(function: Callable[..., object]) -> dict[str, Json]:
    """The JSON schema of a function's arguments."""
    hints = get_type_hints(function, include_extras=True)
    properties: dict[str, Json] = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        where = f"{function.__name__}({parameter.name})"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise BaltoroError(f"{where} has no name of its own", hint="a tool's parameters are given by their names")
        if parameter.name not in hints:
            raise BaltoroError(f"{where} has no type", hint="its JSON schema is made from the types: annotate it")
        properties[parameter.name] = _schema(hints[parameter.name], where)
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(hint: Any, where: str) -> dict[str, Json]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        told = [each for each in arguments[1:] if isinstance(each, str)]
        return _schema(arguments[0], where) | ({"description": told[0]} if told else {})
    if hint in _WORDS:
        return {"type": _WORDS[hint]}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], where)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        some = [each for each in arguments if each is not types.NoneType]
        if len(some) == 1:  # None is what the parameter is when it is left out
            return _schema(some[0], where)
    raise BaltoroError(
        f"{where} is of type {hint}", hint="str, int, float, bool, list[...], Literal[...], or one of these | None"
    )


def _problem(schema: Mapping[str, Json], arguments: Any) -> str | None:
    """What of the arguments the schema forbids, or is wrong with the schema; None: nothing."""
    if type(arguments) is not dict:
        return f"the arguments are {type(arguments).__name__}, expected an object"
    try:
        Draft202012Validator.check_schema(schema)
        validator = Draft202012Validator(schema, registry=Registry())  # no `$ref` is fetched from the net
        found = max(validator.iter_errors(cast("Json", arguments)), key=jsonschema.exceptions.relevance, default=None)
    except (jsonschema.exceptions.SchemaError, referencing.exceptions.Unresolvable) as error:
        return f"the tool's own schema is broken: {error}"
    if found is None:
        return None
    where = ".".join(map(str, cast("Sequence[object]", found.absolute_path)))
    return f"{where}: {found.message}" if where else found.message


def cut(result: ToolResult, chars: int = RESULT_CHARS) -> ToolResult:
    """At most so many characters of it, its beginning and its end, and between them how much is missing."""
    text = result.for_model
    if len(text) <= chars:
        return result
    head, tail = chars * 2 // 3, chars - chars * 2 // 3
    missing = f"\n[... {len(text) - head - tail:,} of {len(text):,} characters left out here ...]\n"
    return replace(result, for_model=text[:head] + missing + text[len(text) - tail :])


def by_name(tools: Sequence[AgentTool]) -> dict[str, AgentTool]:
    """Two tools of one name are refused: the model could not say which it means."""
    found: dict[str, AgentTool] = {}
    for each in tools:
        if each.name in found:
            raise BaltoroError(f"two tools are named {each.name}", hint="tool(function, name=...) gives one another")
        found[each.name] = each
    return found
