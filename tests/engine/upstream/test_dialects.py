from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baltoro.engine.request import SamplingParams, Scored
from baltoro.engine.upstream.dialect import Ask, Dialect, Failed, Heard, Malformed, signed_seed
from baltoro.engine.upstream.llama_server import LlamaServer
from baltoro.engine.upstream.sglang import Sglang
from baltoro.engine.upstream.vllm import Vllm
from baltoro.structure import Document, Tag, Tagged

DIALECTS: list[Dialect] = [Vllm("m"), Sglang(50), LlamaServer(50)]
TAGGED = Tagged(trigger="<s>", tags=(Tag(begin="<s>f:0<a>", schema={"type": "object"}, end="<e>"),))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([
    "choices", "token_ids", "logprobs", "tokens", "tokens_predicted", "stop", "meta_info", "output_ids", "error",
    "completion_tokens", "finish_reason", "completion_probabilities", "token_logprobs", "top_logprobs",
])  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(event=st.dictionaries(KEYS, JSON | st.lists(st.dictionaries(KEYS, JSON, max_size=4), max_size=2), max_size=5))
def test_whatever_comes_is_read_or_called_malformed(dialect: Dialect, event: dict[str, Any]) -> None:
    try:
        chunk = dialect.reader()(event)
    except (Failed, Malformed, KeyError, TypeError, ValueError, AttributeError):  # what connection.py reads as such
        return
    assert all(type(heard.token) is int for heard in chunk.heard)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
def test_a_body_is_json_and_says_every_wish(dialect: Dialect) -> None:
    sampling = SamplingParams(
        max_tokens=77, temperature=0.75, top_p=0.875, top_k=13, min_p=0.125, repetition_penalty=1.5,
        logit_bias={5: -3.5}, seed=2**63 + 5, stop_token_ids=frozenset({6, 7}),
    )  # fmt: skip
    dialect.check(sampling)
    text = json.dumps(dialect.body(Ask(prompt=[1, 2, 3], sampling=sampling)), allow_nan=False)
    for value in ("[1, 2, 3]", "77", "0.75", "0.875", "13", "0.125", "1.5", "-3.5"):
        assert value in text
    assert ("[6, 7]" in text) == (dialect.name != "llama-server")  # there the connection is closed


def test_structures_in_each_engines_own_form() -> None:
    ask = Ask(prompt=[1], sampling=SamplingParams(max_tokens=99), structure=TAGGED)
    tag = {"structures": [{"begin": "<s>f:0<a>", "schema": {"type": "object"}, "end": "<e>"}], "triggers": ["<s>"]}
    assert json.loads(DIALECTS[0].body(ask)["structured_outputs"]["structural_tag"]) == tag
    assert json.loads(DIALECTS[1].body(ask)["sampling_params"]["structural_tag"]) == tag
    assert not {"grammar", "json_schema"} & DIALECTS[2].body(ask).keys()


def test_a_document_in_each_engines_own_form() -> None:
    schema = {"type": "object", "properties": {"ü": {"type": "string"}}}
    ask = Ask(prompt=[1], sampling=SamplingParams(max_tokens=99), structure=Document(schema=schema))
    assert DIALECTS[0].body(ask)["structured_outputs"] == {"json": schema}
    assert json.loads(DIALECTS[1].body(ask)["sampling_params"]["json_schema"]) == schema
    assert DIALECTS[2].body(ask)["json_schema"] == schema


def test_log_probabilities_are_reported_as_ours_are() -> None:
    vllm = {
        "choices": [
            {
                "token_ids": [7],
                "finish_reason": None,
                "logprobs": {
                    "token_logprobs": [-3.0],
                    "top_logprobs": [{"token_id:7": -3.0, "token_id:9": -0.5, "token_id:4": -0.5}],
                },
            }
        ]
    }
    llama = {
        "tokens": [7],
        "tokens_predicted": 1,
        "completion_probabilities": [
            {"id": 7, "logprob": -3.0, "top_logprobs": [{"id": 9, "logprob": -0.5}, {"id": 4, "logprob": -0.5}]}
        ],
    }
    wanted = [Heard(7, Scored(7, -3.0, ((4, -0.5), (9, -0.5), (7, -3.0))))]
    assert DIALECTS[0].reader()(vllm).heard == wanted
    assert DIALECTS[2].reader()(llama).heard == wanted


@pytest.mark.parametrize("whole", [True, False])
def test_sglang_may_repeat_all_tokens_or_send_the_new_ones(whole: bool) -> None:
    read, tokens, heard = Sglang(50).reader(), [4, 4, 5, 6, 6, 7], list[int]()
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        sent = tokens[:stop] if whole else tokens[start:stop]
        meta = {"completion_tokens": stop, "finish_reason": {"type": "length"} if stop == 6 else None}
        chunk = read({"output_ids": sent, "meta_info": meta})
        heard += [each.token for each in chunk.heard]
        assert chunk.over == (stop == 6)
    assert heard == tokens


def test_llama_server_counts_what_it_does_not_tell() -> None:
    read = LlamaServer(50).reader()
    assert not read({"tokens": [1], "tokens_predicted": 1, "stop": False}).missed
    assert read({"tokens": [3], "tokens_predicted": 3, "stop": False}).missed
    assert read({"tokens": [], "tokens_predicted": 4, "stop": True}).missed
    assert LlamaServer(50).reader()({"tokens": [], "tokens_predicted": 1, "stop": True}).missed


@given(st.integers(-(2**63), 2**64 - 1))
def test_a_seed_of_64_bits_becomes_a_signed_one_and_stays_itself(seed: int) -> None:
    assert -(2**63) <= signed_seed(seed) < 2**63
    assert (signed_seed(seed) - seed) % 2**64 == 0
