from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from baltoro.chat.messages import ArgumentsDelta, CallBegun, CallEnded, Delta, Finished, TextDelta, ToolCall, Usage
from baltoro.chat.parser import Folded, IncompleteCall, Parser, TextParser, fold
from baltoro.errors import TokenizerError
from tests import vocabulary
from tests.chat import golden

CASES = golden.rows("golden_tool_parse")
TOKENIZER = vocabulary.tokenizer()
MARKERS = [
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
]
BEGIN, END, CALL, ARGUMENTS, CALL_END = MARKERS


def by_name(case: dict[str, Any]) -> str:
    return case["name"]


def expected(case: dict[str, Any]) -> Folded:
    return Folded(
        case["content"],
        tuple(ToolCall(**call) for call in case["tool_calls"]),
        tuple(IncompleteCall(**call) for call in case.get("incomplete", [])),
    )


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """Adjacent pieces of the same text joined: what must not depend on how the answer was cut."""
    out: list[Delta] = []
    for delta in deltas:
        match out[-1] if out else None, delta:
            case TextDelta(before), TextDelta(text):
                out[-1] = TextDelta(before + text)
            case ArgumentsDelta(index, before), ArgumentsDelta(same, text) if index == same:
                out[-1] = ArgumentsDelta(index, before + text)
            case _:
                out.append(delta)
    return out


def read_ids(ids: Iterable[int], **options: Any) -> tuple[list[Delta], list[IncompleteCall]]:
    parser = Parser(TOKENIZER, **options)
    deltas = [delta for token in ids for delta in parser.push(token)]
    return deltas + parser.finish(), parser.malformed


def read_text(pieces: Iterable[str], **options: Any) -> tuple[list[Delta], list[IncompleteCall]]:
    parser = TextParser(**options)
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    return deltas + parser.finish(), parser.malformed


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_spelled_markers_in_a_texts_engine_are_read_as_recorded(case: dict[str, Any]) -> None:
    assert fold(*read_text([case["output_text"]])) == expected(case)


@pytest.mark.parametrize("case", [c for c in CASES if c["name"] != "singular_section_markers"], ids=by_name)
def test_marker_ids_are_read_as_recorded(case: dict[str, Any]) -> None:
    assert fold(*read_ids(TOKENIZER.encode_with_specials(case["output_text"]))) == expected(case)


def test_markers_that_are_no_tokens_stay_text() -> None:
    text = f"S. <|tool_call_section_begin|>{CALL}functions.f:0{ARGUMENTS}{{}}{CALL_END}<|tool_call_section_end|>"
    folded = fold(*read_ids(TOKENIZER.encode_with_specials(text)))
    assert folded.content == "S. <|tool_call_section_begin|><|tool_call_section_end|>"
    assert [call.id for call in folded.calls] == ["functions.f:0"]


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_markers_merely_spelled_out_are_content(case: dict[str, Any]) -> None:
    text = case["output_text"]
    assert fold(*read_ids(TOKENIZER.encode(text))) == Folded(text or None, (), ())


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_every_split_point_gives_the_same_deltas(case: dict[str, Any]) -> None:
    text = case["output_text"]
    whole, malformed = read_text([text])
    # The 20,000 characters inside one string are alike: their middle is sampled.
    points = range(len(text)) if len(text) < 2000 else [*range(400), *range(400, len(text) - 400, 997)]
    points = [*points, *range(max(len(text) - 400, 0), len(text) + 1)]
    for point in points:
        deltas, same = read_text([text[:point], text[point:]])
        assert merged(deltas) == merged(whole), point
        assert same == malformed, point
    deltas, same = read_text(text)
    assert merged(deltas) == merged(whole)
    assert same == malformed


PIECES = st.one_of(
    st.sampled_from(
        [*MARKERS, "<|tool_call_section_begin|>", "<|im_end|>", "<|im", "functions.f:0", "f:", "7", "北京"]
    ),
    st.sampled_from(['{"a": 1}', '{"a": "', '"', "\\", "}", "{", " ", "\n", "<", "[1]"]),
    st.text(max_size=3),
)
OUTPUTS = st.lists(PIECES, max_size=14).map("".join)


@given(OUTPUTS, st.data())
@settings(max_examples=300, deadline=None)
def test_streamed_is_whole_for_any_chunking(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    edges = [0, *cuts, len(text)]
    streamed, malformed = read_text(text[a:b] for a, b in pairwise(edges))
    whole, same = read_text([text])
    assert merged(streamed) == merged(whole)
    assert malformed == same


@given(OUTPUTS.map(lambda text: text.replace("_call_section", "_calls_section")))
@settings(max_examples=300, deadline=None)
def test_ids_and_spelled_markers_mean_the_same(text: str) -> None:
    """Except where <|im_end|> stands in a string: as an id it ends the answer, as text it is text."""
    assume("<|im_end|>" not in text)
    from_ids, malformed = read_ids(TOKENIZER.encode_with_specials(text))
    from_text, same = read_text([text])
    assert merged(from_ids) == merged(from_text)
    assert malformed == same


TOKENS = st.one_of(
    st.integers(0, TOKENIZER.vocab_size - 1),
    st.sampled_from([TOKENIZER.special_id(marker) for marker in MARKERS]),
    st.sampled_from(list(b'{}"\\: \n0a')),
)


@given(st.lists(TOKENS, max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_ids_at_all_give_a_well_formed_stream(ids: list[int]) -> None:
    deltas, _ = read_ids(ids)
    begun: list[int] = []
    is_open: int | None = None
    for delta in deltas:
        match delta:
            case CallBegun(index):
                assert index == len(begun)
                begun.append(index)
                is_open = index
            case ArgumentsDelta(index, text):
                assert index == is_open
                assert text
            case CallEnded(index):
                assert index == is_open
                is_open = None
            case TextDelta(text):
                assert text
            case _:
                pytest.fail(f"{delta} from a parser")


def test_text_is_given_out_at_once() -> None:
    parser = Parser(TOKENIZER)
    given_out = [parser.push(token) for token in TOKENIZER.encode("Hello <| 北")]
    assert fold([delta for deltas in given_out for delta in deltas]).content == "Hello <| 北"
    assert all(given_out)  # 北 is one token here

    spelled = TextParser()
    assert [spelled.push(c) for c in "a<b<|t "] == [
        [TextDelta("a")],
        [],
        [TextDelta("<b")],
        [],
        [],
        [],
        [TextDelta("<|t ")],
    ]


def test_a_call_is_streamed_piece_by_piece() -> None:
    parser = Parser(TOKENIZER)
    seen = {}
    for piece in [BEGIN, CALL, "functions.f:0", ARGUMENTS, ' {"a": ', '"b ', 'c"', "} ", CALL_END, END]:
        seen[piece] = merged(d for token in TOKENIZER.encode_with_specials(piece) for d in parser.push(token))
    assert seen == {
        BEGIN: [],
        CALL: [],
        "functions.f:0": [],
        ARGUMENTS: [CallBegun(0, "functions.f:0", "f")],
        ' {"a": ': [ArgumentsDelta(0, '{"a":')],
        '"b ': [ArgumentsDelta(0, ' "b ')],  # inside a string a blank is sure to count
        'c"': [ArgumentsDelta(0, 'c"')],
        "} ": [ArgumentsDelta(0, "}")],
        CALL_END: [CallEnded(0)],
        END: [],
    }


def test_a_call_without_index_takes_the_next_of_the_conversation() -> None:
    headers = ["functions.a", "functions.b:7", "functions.c:1", "d", "functions.$web_search"]
    deltas, _ = read_text([f"{CALL}{header}{ARGUMENTS}{{}}{CALL_END}" for header in headers], next_index=4)
    begun = [delta.id for delta in deltas if isinstance(delta, CallBegun)]
    assert begun == ["functions.a:4", "functions.b:7", "functions.c:1", "functions.d:8", "functions.$web_search:9"]


def test_renumbered_ids_count_on_whatever_the_model_wrote() -> None:
    call = f"{CALL}functions.a:0{ARGUMENTS}{{}}{CALL_END}"
    deltas, _ = read_ids(TOKENIZER.encode_with_specials(f"{BEGIN}{call}{call}{END}"), next_index=3, renumber=True)
    assert [delta.id for delta in deltas if isinstance(delta, CallBegun)] == ["functions.a:3", "functions.a:4"]


@pytest.mark.parametrize(
    "header", ["functions.", "functions.:0", ":0", "functions.3", "a b:0", "x" * 65, "f:" + "1" * 5000]
)
def test_a_header_that_names_nothing_is_malformed(header: str) -> None:
    deltas, malformed = read_text([f"{CALL}{header}{ARGUMENTS}{{}}{CALL_END}"])
    assert deltas == []
    assert malformed == [IncompleteCall(id=header, name=None, arguments="{}")]


@pytest.mark.parametrize(
    "arguments, complete",
    [
        ("{}", True),
        ("[1]", True),
        ('{"a": 1', False),
        ("12", False),
        ("{'a': 1}", False),
        ("", False),
        ("[" * 99999, False),
    ],
)
def test_without_its_end_marker_a_call_needs_complete_json(arguments: str, complete: bool) -> None:
    for closing in ["", END, f"{CALL}functions.g:1{ARGUMENTS}{{}}{CALL_END}"]:
        deltas, _ = read_text([f"{BEGIN}{CALL}functions.f:0{ARGUMENTS}{arguments}{closing}"])
        assert (CallEnded(0) in deltas) == complete


@pytest.mark.parametrize("stop", ["<|im_end|>", "[EOS]"])
def test_a_stop_token_ends_the_answer_even_inside_a_string(stop: str) -> None:
    text = f'{BEGIN}{CALL}functions.f:0{ARGUMENTS}{{"a": "b{stop}c"}}{CALL_END}{END}'
    folded = fold(*read_ids(TOKENIZER.encode_with_specials(text)))
    assert folded == Folded(None, (), (IncompleteCall(id="functions.f:0", name="f", arguments='{"a": "b'),))


def test_other_control_tokens_are_text_in_strings_and_nothing_elsewhere() -> None:
    text = f'a<|im_user|>b{CALL}functions.f:0{ARGUMENTS}{{"x":[EOT] "<|im_middle|>"}}{CALL_END}'
    folded = fold(*read_ids(TOKENIZER.encode_with_specials(text)))
    assert folded == Folded("ab", (ToolCall(id="functions.f:0", name="f", arguments='{"x": "<|im_middle|>"}'),), ())


def test_a_character_cut_off_by_a_marker_becomes_a_replacement_character() -> None:
    ids = [*b"a\xe5\x8c", TOKENIZER.special_id(BEGIN)]
    assert fold(*read_ids(ids)).content == "a\ufffd"
    assert fold(*read_ids(ids[:-1])).content == "a\ufffd"


def test_blanks_between_sections_and_after_them_are_dropped_unless_text_follows() -> None:
    section = f"{BEGIN}{END}"
    assert fold(*read_text(f"a{section} \n{section}\n ")).content == "a"
    assert fold(*read_text(f"a{section} \n b ")).content == "a \n b "
    assert fold(*read_text(f"a{section} \n{section}b")).content == "ab"
    assert fold(*read_text(f"a{CALL}functions.f:0{ARGUMENTS}{{}}{CALL_END}\n")).content == "a"
    assert fold(*read_text(f"a{END}\n")).content == "a\n"  # a stray marker makes no section


def test_an_escaped_quote_does_not_end_a_string() -> None:
    arguments = f'{{"a": "x\\" {CALL_END} \\\\", "b": "\\\\"}}'
    deltas, _ = read_text([f"{CALL}functions.f:0{ARGUMENTS}{arguments}{CALL_END}"])
    assert [call.arguments for call in fold(deltas).calls] == [arguments]


def test_a_finished_parser_gives_nothing_more() -> None:
    parser = Parser(TOKENIZER)
    parser.push(ord("a"))
    assert parser.finish() == []
    assert parser.finish() == parser.push(ord("b")) == parser.push(TOKENIZER.special_id(CALL)) == []


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(TokenizerError, match="does not exist"):
        Parser(TOKENIZER).push(TOKENIZER.vocab_size)


def test_folding_ignores_the_end_of_the_stream() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    assert fold([TextDelta("a"), Finished("stop", usage)]) == Folded("a", (), ())
