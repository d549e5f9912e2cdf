from __future__ import annotations

import json
import random
import re
import threading
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.chat.grammar import Grammar, ToolConstraint
from baltoro.chat.messages import AnswerFormat, Tool, ToolCall, ToolChoice
from baltoro.chat.parser import Parser, fold
from baltoro.errors import RequestError, SchemaError
from baltoro.structure import Document, Tagged
from tests import vocabulary

T = vocabulary.tokenizer()
GRAMMAR = Grammar(T)
AUTO, NONE, REQUIRED = ToolChoice(), ToolChoice(mode="none"), ToolChoice(mode="required")
MARKERS = [
    T.tool_calls_section_begin,
    T.tool_calls_section_end,
    T.tool_call_begin,
    T.tool_call_argument_begin,
    T.tool_call_end,
]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
QUOTE = T.encode('"')[0]
# What ends things soonest outside a JSON string, for walks that have gone on long enough.
# What formats and patterns want before a string may end: b+c? a letter, an email address an @.
WANTED = [T.encode(character)[0] for character in "b@:.1"]
CLOSERS = [T.im_end, T.tool_calls_section_end, T.tool_call_end, *T.encode("}"), *T.encode("]"), QUOTE]


def tool(name: str, parameters: Any = None) -> Tool:
    function = {"name": name, "parameters": parameters}
    return Tool(name=name, parameters=parameters, declaration={"type": "function", "function": function})


def constraint(*tools: Tool, choice: ToolChoice = AUTO, next_index: int = 0, parallel: bool = True) -> ToolConstraint:
    return GRAMMAR.compile(tools, choice, next_index=next_index, parallel=parallel)


def formatted(schema: Any, *tools: Tool, choice: ToolChoice = AUTO) -> ToolConstraint:
    return GRAMMAR.compile(tools, choice, next_index=0, answer_format=AnswerFormat(schema=schema))


def allowed(rules: ToolConstraint) -> set[int]:
    return set(np.flatnonzero(rules.mask()).tolist())


def walk(rules: ToolConstraint, seed: int, *, patience: int = 60, limit: int = 1000) -> list[int]:
    """Random allowed tokens up to a stop token; after `patience` of them whatever closes something goes first."""
    choose = random.Random(seed)
    tokens: list[int] = []
    while not tokens or tokens[-1] not in T.stop_ids:
        assert len(tokens) < limit, T.decode(tokens[-200:])
        mask = rules.mask()
        assert mask.any(), f"dead end behind {T.decode(tokens)!r}"
        opened = T.decode(tokens).rpartition("<|tool_call_argument_begin|>")[2]
        in_string = re.sub(r'\\.|[^"]', "", opened).count('"') % 2
        closers = [token for token in ([QUOTE] if in_string else CLOSERS) if mask[token]]
        if closers and (len(tokens) > patience or choose.random() < 0.2):
            token = closers[0]
        elif in_string and choose.random() < 0.5 and (wanted := [token for token in WANTED if mask[token]]):
            token = choose.choice(wanted)
        else:
            token = choose.choice(np.flatnonzero(mask).tolist())
        rules.advance(token)
        tokens.append(token)
    return tokens


def follow(rules: ToolConstraint, text: str) -> int:
    """Advance over `text` with control tokens spelled out; how many tokens of it were allowed."""
    tokens = T.encode_with_specials(text)
    for place, token in enumerate(tokens):
        if not rules.mask()[token]:
            return place
        rules.advance(token)
    return len(tokens)


def calls_of(tokens: list[int]) -> tuple[ToolCall, ...]:
    parser = Parser(T)
    answer = fold([delta for token in tokens for delta in parser.push(token)] + parser.finish())
    assert not answer.incomplete and not parser.malformed
    return answer.calls


def assert_compact(text: str) -> None:
    """At most one blank, behind a colon or a comma."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    assert not re.search(r"(?<![:,])\s|\s\s|[^\S ]", bare), text


# Every keyword seen in agents' tools, and their usual company.
SCALARS = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": st.integers(0, 3),
            "maxLength": st.integers(3, 6),
            "default": st.just("x"),
            "description": st.just("ein Wörtchen"),
        },
    ),
    st.sampled_from(["^[a-z]{2}-[0-9]+$", "b+c?", r"^\d{1,3}\.\w$"]).map(lambda p: {"type": "string", "pattern": p}),
    st.sampled_from(["date-time", "date", "email", "uuid", "uri", "phone"]).map(
        lambda name: {"type": "string", "format": name}
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={
            "minimum": st.integers(-20, 5),
            "maximum": st.integers(6, 300),
            "exclusiveMinimum": st.integers(-9, 5),
        },
    ),
    st.lists(
        st.sampled_from(["a", "ab", "北京", 'q"\\\n', 1, 2.5, None, True, {"k": [1]}]), min_size=1, max_size=3
    ).map(lambda values: {"enum": values}),
    st.sampled_from(
        [{"const": "on"}, {"const": {"a": [1, "é"]}}, {"type": "boolean"}, {"type": ["null", "integer"]}, {}]
    ),
    st.just({"$ref": "#/$defs/tree"}),
)
NAMES = st.sampled_from(["city", "ünit", "a b", 'q"', "type", "$x", "functions"])


def wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(NAMES, inner, max_size=3)
    objects = st.builds(
        lambda properties, extra, required: (
            {
                "type": "object",
                "properties": properties,
                "required": sorted(properties)[:required],
            }
            | extra
        ),
        properties,
        st.one_of(
            st.just({}),
            st.booleans().map(lambda value: {"additionalProperties": value}),
            inner.map(lambda value: {"additionalProperties": value}),
        ),
        st.integers(0, 3),
    )
    records = st.builds(
        lambda names, values: {"type": "object", "propertyNames": names, "additionalProperties": values},
        st.sampled_from([{"type": "string"}, {"enum": ["x", "y"]}, {"pattern": "^k[0-9]$"}, {"maxLength": 2}]),
        inner,
    )
    arrays = st.builds(
        lambda items, extra: {"type": "array", "items": items} | extra,
        inner,
        st.fixed_dictionaries({}, optional={"minItems": st.integers(0, 2), "maxItems": st.integers(2, 3)}),
    )
    return st.one_of(objects, records, arrays, st.lists(inner, min_size=1, max_size=2).map(lambda b: {"anyOf": b}))


TREE = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 3}, "next": {"$ref": "#/$defs/tree"}},
    "required": ["name"],
}
PARAMETERS = st.one_of(
    st.sampled_from([{}, {"type": "object"}, {"type": "object", "properties": {}}]),
    st.builds(
        lambda properties, required: {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": properties,
            "required": sorted(properties)[:required],
            "$defs": {"tree": TREE},
        },
        st.dictionaries(NAMES, st.recursive(SCALARS, wider, max_leaves=4), min_size=1, max_size=3),
        st.integers(0, 3),
    ),
)


FORMATS = st.one_of(
    PARAMETERS,
    st.recursive(SCALARS, wider, max_leaves=4).map(
        lambda schema: {"$defs": {"tree": TREE}, "anyOf": [schema]}  # any kind of value
    ),
)


@settings(max_examples=150, deadline=None)
@given(schema=FORMATS, seed=st.integers(0, 2**32), tools=st.booleans())
def test_whatever_is_allowed_in_a_format_is_json_under_its_schema_or_calls(schema: Any, seed: int, tools: bool) -> None:
    rules = formatted(schema, *[tool("f", CITY)] * tools)
    tokens = walk(rules, seed)
    if tools and tokens[0] == T.tool_calls_section_begin:
        assert {call.name for call in calls_of(tokens)} == {"f"}
        return
    text = T.decode(tokens[:-1])
    assert tokens[-1] in T.stop_ids and all(token < T.num_base for token in tokens[:-1])
    assert_compact(text)
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("seed", range(10))
def test_a_format_without_a_schema_is_any_object(seed: int) -> None:
    text = T.decode(walk(formatted(None), seed)[:-1])
    assert isinstance(json.loads(text), dict)
    assert_compact(text)


@settings(max_examples=150, deadline=None)
@given(
    schemas=st.lists(PARAMETERS, min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    next_index=st.sampled_from([0, 3, 9, 99, 12345]),
    parallel=st.booleans(),
)
def test_whatever_is_allowed_is_a_call_with_valid_arguments(
    schemas: list[Any], seed: int, next_index: int, parallel: bool
) -> None:
    tools = {f"tool_{place}": tool(f"tool_{place}", parameters) for place, parameters in enumerate(schemas)}
    rules = constraint(*tools.values(), choice=REQUIRED, next_index=next_index, parallel=parallel)
    tokens = walk(rules, seed)
    calls = calls_of(tokens)
    assert calls and (parallel or len(calls) == 1)
    for place, call in enumerate(calls):
        assert call.id == f"functions.{call.name}:{next_index + place}"
        assert isinstance(call.arguments, str)
        assert_compact(call.arguments)
        jsonschema.Draft202012Validator(tools[call.name].parameters).validate(json.loads(call.arguments))
    begun, ended = tokens.count(T.tool_call_begin), tokens.count(T.tool_call_end)
    assert begun == ended == len(calls)
    assert all(token in {*MARKERS, T.im_end} for token in tokens if token >= T.num_base)


@pytest.mark.parametrize("seed", range(20))
def test_with_choice_auto_text_goes_first_and_calls_end_the_turn(seed: int) -> None:
    tokens = walk(constraint(tool("f", CITY)), seed)
    controls = [token for token in tokens if token >= T.num_base]
    if T.tool_calls_section_begin in tokens:
        assert len(calls_of(tokens)) == tokens.count(T.tool_call_begin) >= 1
        assert tokens[-2:] == [T.tool_calls_section_end, T.im_end]
    else:
        assert len(controls) == 1 and controls[0] in T.stop_ids


@pytest.mark.parametrize("tools", [(), (tool("f", CITY),)])
def test_with_choice_none_or_without_tools_only_text_is_possible(tools: tuple[Tool, ...]) -> None:
    rules = constraint(*tools, choice=NONE if tools else AUTO)
    text = {*range(T.num_base), *T.stop_ids}
    assert allowed(rules) == text
    for token in T.encode("functions.f:0<|tool_calls_section_begin|>"):
        rules.advance(token)
        assert allowed(rules) == text
    rules.advance(T.im_end)
    assert allowed(rules) == T.stop_ids


def test_a_required_call_begins_at_once_and_may_be_any_declared_tool() -> None:
    for name in ("f", "g"):
        rules = constraint(tool("f", CITY), tool("g"), choice=REQUIRED)
        assert allowed(rules) == {T.tool_calls_section_begin}
        header = f"<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>"
        assert follow(rules, header) == len(T.encode_with_specials(header))


def test_a_named_call_is_one_call_of_that_tool() -> None:
    tools = tool("get_weather", CITY), tool("get_weather_forecast", CITY)
    for seed in range(10):
        rules = constraint(*tools, choice=ToolChoice(mode="named", name="get_weather"))
        assert [call.name for call in calls_of(walk(rules, seed))] == ["get_weather"]


NESTED = ["get", "get_weather", "get_weather_forecast", "g", "function", "functions", "a:0", "a", "获取天气", "x.y-z"]


@pytest.mark.parametrize("name", NESTED)
def test_every_declared_tool_can_be_called_by_its_canonical_tokens(name: str) -> None:
    rules = constraint(*map(tool, NESTED), next_index=7)
    text = f"Gern.<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:7<|tool_call_argument_begin|>"
    text += '{"a": [1, {"b":null}]}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
    tokens = T.encode_with_specials(text)
    assert follow(rules, text) == len(tokens)
    (call,) = calls_of(tokens)
    assert (call.name, call.id) == (name, f"functions.{name}:7")


@pytest.mark.parametrize(
    "header", ["functions.f:1", "functions.f:00", "functions.g:0", "f:0", " functions.f:0", "functions.f:0 "]
)
def test_no_other_id_can_be_written(header: str) -> None:
    rules = constraint(tool("f"))
    text = f"<|tool_calls_section_begin|><|tool_call_begin|>{header}<|tool_call_argument_begin|>"
    assert follow(rules, text) < len(T.encode_with_specials(text))


def test_ids_count_on_through_one_turn_and_parallel_false_allows_one_call() -> None:
    call = "<|tool_call_begin|>functions.f:{}<|tool_call_argument_begin|>{{}}<|tool_call_end|>"
    rules = constraint(tool("f"), next_index=9)
    follow(rules, "<|tool_calls_section_begin|>" + call.format(9) + call.format(10))
    assert allowed(rules) == {T.tool_call_begin, T.tool_calls_section_end}
    rules = constraint(tool("f"), parallel=False)
    follow(rules, "<|tool_calls_section_begin|>" + call.format(0))
    assert allowed(rules) == {T.tool_calls_section_end}


def test_spelled_out_markers_are_text_before_and_inside_calls() -> None:
    rules = constraint(tool("f", CITY))
    for token in T.encode("<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|im_end|>"):
        assert rules.mask()[token]
        rules.advance(token)
    assert allowed(rules) == {*range(T.num_base), *T.stop_ids, T.tool_calls_section_begin}
    tokens = [T.tool_calls_section_begin, T.tool_call_begin, *T.encode("functions.f:0"), T.tool_call_argument_begin]
    tokens += [*T.encode('{"city": "<|tool_call_end|><|im_end|>"}'), T.tool_call_end, T.tool_calls_section_end]
    for token in tokens:
        assert rules.mask()[token]
        rules.advance(token)
    assert allowed(rules) == {T.im_end}
    assert calls_of(tokens)[0].arguments == '{"city": "<|tool_call_end|><|im_end|>"}'


def test_no_control_token_can_stand_inside_arguments() -> None:
    rules = constraint(tool("f", CITY), choice=REQUIRED)
    follow(rules, "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>")
    for token in T.encode('{"city": "北'):
        rules.advance(token)
        assert max(allowed(rules)) < T.num_base
    follow(rules, '京"}')
    assert allowed(rules) == {T.tool_call_end}


@pytest.mark.parametrize("blanks", ["  ", "\n", "\t", " \n"])
@pytest.mark.parametrize(
    "arguments", ['{{{}"a":1}}', '{{"a":{}1}}', '{{"a":1,{}"b":1}}', '{{"a":1{}}}', '{{"a":[1,{}2]}}']
)
def test_blanks_cannot_pile_up_between_the_parts_of_json(arguments: str, blanks: str) -> None:
    rules = constraint(tool("f"))
    text = "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    assert follow(rules, text + arguments.format(blanks)) < len(T.encode_with_specials(text + arguments.format(blanks)))


@pytest.mark.parametrize(
    ("parameters", "keyword"),
    [
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!x)"}}}, "look-ahead"),
        ({"type": "object", "properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}, "oneOf"),
        ({"type": "object", "properties": {"a": {"uniqueItems": True}}}, "uniqueItems"),
    ],
)
def test_a_schema_that_cannot_be_compiled_is_an_error_that_names_the_tool_and_the_keyword(
    parameters: Any, keyword: str
) -> None:
    with pytest.raises(SchemaError) as caught:
        constraint(tool("good", CITY), tool("bad", parameters), choice=NONE)
    assert caught.value.param == "tools[1].function.parameters"
    assert "'bad'" in caught.value.message and keyword in caught.value.message


@pytest.mark.parametrize("names", [("f", "f"), ("",), ("a b",), ("a\n",)])
def test_tools_without_a_name_of_their_own_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(SchemaError) as caught:
        constraint(*map(tool, names))
    assert caught.value.param == f"tools[{len(names) - 1}].function.name"


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_can_be_called(mode: Literal["auto", "required"]) -> None:
    """Of two tools whose names begin alike."""
    begun = "<|tool_calls_section_begin|><|tool_call_begin|>functions.read"
    for name, rest in (("read", ":0"), ("readme", "me:0")):
        whole = T.encode_with_specials(f"{begun}{rest}<|tool_call_argument_begin|>")
        for names in (("read",), ("readme",), ("read", "readme")):
            rules = constraint(tool("read"), tool("readme"), choice=ToolChoice(mode=mode, allowed=names))
            assert (follow(rules, f"{begun}{rest}<|tool_call_argument_begin|>") == len(whole)) == (name in names)


def test_a_choice_that_no_tool_can_meet_is_refused() -> None:
    with pytest.raises(RequestError, match=r"'g'.*f, h") as caught:
        constraint(tool("f"), tool("h"), choice=ToolChoice(mode="named", name="g"))
    assert caught.value.param == "tool_choice"
    with pytest.raises(RequestError, match="required"):
        constraint(choice=REQUIRED)


def test_constraints_of_the_same_tools_do_not_disturb_each_other_nor_mind_threads() -> None:
    """Compiled on eight threads at once, each walked on another thread than its compiler."""
    made: list[ToolConstraint] = []
    walked: dict[int, list[int]] = {}

    def run(work: Any) -> None:
        threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    run(lambda place: made.append(constraint(tool("f", CITY), tool("g"), choice=REQUIRED)))
    run(lambda place: walked.update({place: walk(made[place], seed=place)}))
    for place in range(8):
        assert walked[place] == walk(constraint(tool("f", CITY), tool("g"), choice=REQUIRED), seed=place)


# ── the answer's format ──────────────────────────────────────────────────────────────────────────


def test_calls_may_come_in_place_of_formatted_text_never_behind_it() -> None:
    rules = formatted(CITY, tool("f", CITY))
    assert T.tool_calls_section_begin in allowed(rules) and not allowed(rules) & T.stop_ids
    follow(rules, '{"city": ')
    assert T.tool_calls_section_begin not in allowed(rules)
    follow(rules, '"<|x"}')
    assert allowed(rules) == T.stop_ids
    called = formatted(CITY, tool("f", CITY))
    text = '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"city": "a"}'
    text += "<|tool_call_end|><|tool_calls_section_end|><|im_end|>"
    assert follow(called, text) == len(T.encode_with_specials(text))


def test_a_call_that_is_required_comes_before_any_format_and_none_leaves_the_format_alone() -> None:
    assert allowed(formatted(CITY, tool("f"), choice=REQUIRED)) == {T.tool_calls_section_begin}
    assert T.tool_calls_section_begin not in allowed(formatted(CITY, tool("f"), choice=NONE))


def test_a_number_may_end_or_go_on() -> None:
    rules = formatted({"type": "integer"})
    follow(rules, "12")
    assert allowed(rules) >= T.stop_ids | set(T.encode("3"))
    rules.advance(T.im_end)
    assert allowed(rules) == T.stop_ids


def test_formatted_text_cannot_go_on_behind_its_end() -> None:
    with pytest.raises(RequestError) as caught:
        GRAMMAR.compile((), AUTO, next_index=0, endless=True, answer_format=AnswerFormat())
    assert caught.value.param == "ignore_eos"


def test_a_format_that_cannot_be_compiled_names_the_field() -> None:
    with pytest.raises(SchemaError, match=r"response_format: /properties/a/pattern .*look-ahead") as caught:
        formatted({"properties": {"a": {"pattern": "^(?!x)"}}})
    assert caught.value.param == "response_format"


@given(schema=FORMATS, seed=st.integers(0, 10**6), tools=st.booleans())
@settings(max_examples=40, deadline=None)
def test_forced_tokens_of_a_format_are_allowed_one_after_the_other(schema: Any, seed: int, tools: bool) -> None:
    tokens = walk(formatted(schema, *[tool("f", CITY)] * tools), seed)
    for place in range(len(tokens)):
        rules = formatted(schema, *[tool("f", CITY)] * tools)
        for token in tokens[:place]:
            rules.advance(token)
        for token in rules.forced(12):
            assert rules.mask()[token], f"{T.decode([token])!r} behind {T.decode(tokens[:place])!r}"
            rules.advance(token)


def test_a_format_describes_itself_at_its_beginning() -> None:
    rules = formatted(CITY)
    assert rules.describe() == Document(schema=CITY | {"additionalProperties": False})
    follow(rules, '{"city": ')
    assert rules.describe() is None
    both = formatted(CITY, tool("f")).describe()
    assert isinstance(both, Tagged) and len(both.tags) == 1


# ── what is forced ───────────────────────────────────────────────────────────────────────────────


@given(seed=st.integers(0, 10**6), choice=st.sampled_from([AUTO, REQUIRED]), parallel=st.booleans())
@settings(max_examples=40, deadline=None)
def test_forced_tokens_are_allowed_one_after_the_other(seed: int, choice: ToolChoice, parallel: bool) -> None:
    tools = (tool("weather", CITY), tool("weather_report", CITY | {"additionalProperties": False}))
    tokens = walk(constraint(*tools, choice=choice, parallel=parallel), seed)
    for place in range(len(tokens)):
        rules = constraint(*tools, choice=choice, parallel=parallel)
        for token in tokens[:place]:
            rules.advance(token)
        before = rules.mask().copy()
        forced = rules.forced(12)
        assert np.array_equal(rules.mask(), before), "a look ahead moved it"
        assert len(forced) <= 12
        for token in forced:
            assert rules.mask()[token], f"{T.decode([token])!r} behind {T.decode(tokens[:place])!r}"
            rules.advance(token)


def test_a_single_tool_is_foreseen_up_to_its_first_value() -> None:
    rules = constraint(tool("weather", CITY | {"additionalProperties": False}), choice=REQUIRED, next_index=3)
    text = T.decode(rules.forced(100))
    assert text == (
        '<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:3<|tool_call_argument_begin|>{"city'
    )  # whether a blank follows the colon is the model's choice, and so is the token that ends the key
    assert follow(rules, text + '": "Rom"}') > len(T.encode_with_specials(text))
    assert rules.forced(10) == [T.tool_call_end, T.tool_calls_section_end, T.im_end]


# ── what it says of itself ───────────────────────────────────────────────────────────────────────


def test_a_constraint_describes_what_may_follow_where_it_can() -> None:
    """Walked through one call: whoever follows the description meets no mask that forbids it."""
    rules = constraint(tool("weather", CITY), tool("time", {}), next_index=3)
    described = rules.describe()
    assert isinstance(described, Tagged)
    assert described.trigger == "<|tool_calls_section_begin|>"
    assert [tag.begin.removeprefix(described.trigger) for tag in described.tags] == [
        f"<|tool_call_begin|>functions.{name}:3<|tool_call_argument_begin|>" for name in ("weather", "time")
    ]
    tag = described.tags[0]
    for token in T.encode_with_specials(tag.begin):
        assert token in allowed(rules)
        rules.advance(token)
    document = rules.describe()
    assert document == Document(schema=tag.schema)
    for token in T.encode_with_specials('{"city": "a"}' + tag.end):
        assert token in allowed(rules)
        rules.advance(token)
        assert rules.describe() is None, "in the middle of a call it has no words"
    assert constraint().describe() is None, "there are no tools"
