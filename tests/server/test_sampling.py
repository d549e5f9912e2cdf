"""OpenAI's client against a running server with a real model: K2's architecture in miniature, random weights."""

from __future__ import annotations

import json
import math
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import uvicorn
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from baltoro.chat.messages import Message
from baltoro.chat.template import render
from baltoro.llm import LLM
from baltoro.model.batch import Batch
from baltoro.server import listen
from baltoro.server.app import Served, create_app
from tests.server.conftest import Address

HI = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]},
    },
}
IDS = [10, 11, 300, 12, 13]
BASE: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "seed": 3, "temperature": 1.0}


@pytest.fixture(scope="module")
def running(tiny_checkpoint: Path) -> Iterator[tuple[Address, LLM]]:
    llm = LLM.open(tiny_checkpoint, max_context=512)
    sockets = listen.bind("127.0.0.1", 0)
    address = Address(listen.port_of(sockets[0]))
    sockets[0].listen()
    app = create_app(Served(llm=llm, names=("tiny",)))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    yield address, llm
    server.should_exit = True
    address.http.close()
    address.openai.close()
    thread.join()
    llm.close()


@pytest.fixture
def client(running: tuple[Address, LLM]) -> openai.OpenAI:
    return running[0].openai


def log_softmax(llm: LLM, history: list[int]) -> list[float]:
    """Of the token after `history`, by the model alone, in float64."""
    with torch.inference_mode():
        return llm.engine.model(Batch.of([history]))[-1].double().log_softmax(-1).tolist()


def chat(client: openai.OpenAI, **wishes: Any) -> ChatCompletion:
    return client.chat.completions.create(messages=HI, **(BASE | wishes))  # type: ignore[call-overload]


def complete(client: openai.OpenAI, **wishes: Any) -> Completion:
    return client.completions.create(**({"prompt": IDS} | BASE | wishes))  # type: ignore[call-overload]


# ── n ────────────────────────────────────────────────────────────────────────────────────────────


def test_choice_0_of_n_is_the_answer_of_n_1_and_the_others_differ(client: openai.OpenAI) -> None:
    alone, several, again = chat(client), chat(client, n=4), chat(client, n=4)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert texts[0] == alone.choices[0].message.content
    assert len(set(texts)) == 4
    assert texts == [choice.message.content for choice in again.choices]
    assert several.usage.prompt_tokens == alone.usage.prompt_tokens
    assert several.usage.completion_tokens == 4 * 6


def test_n_answers_to_each_of_several_prompts(client: openai.OpenAI) -> None:
    extra = {"return_token_ids": True}
    both = complete(client, prompt=[IDS, [7, 8]], n=2, best_of=2, extra_body=extra)
    first, second = (complete(client, prompt=prompt, n=2, extra_body=extra) for prompt in (IDS, [7, 8]))
    assert [c.token_ids for c in both.choices] == [c.token_ids for c in [*first.choices, *second.choices]]
    assert [c.prompt_token_ids for c in both.choices] == [IDS, IDS, [7, 8], [7, 8]]
    assert both.usage.prompt_tokens == 7
    assert both.usage.completion_tokens == 24


def test_each_choice_calls_with_its_own_grammar_and_ids(client: openai.OpenAI) -> None:
    wishes = {"n": 4, "tools": [TOOL], "tool_choice": "required", "max_tokens": 60, "parallel_tool_calls": False}
    for choice in chat(client, **wishes).choices:
        (call,) = choice.message.tool_calls
        assert call.id == "functions.get_weather:0"
        assert json.loads(call.function.arguments)["unit"] in ("C", "F")


def fold(chunks: list[ChatCompletionChunk]) -> dict[int, dict[str, Any]]:
    folded: dict[int, dict[str, Any]] = defaultdict(
        lambda: {"content": "", "calls": "", "tokens": [], "finish": None, "roles": 0}
    )
    for chunk in chunks:
        for choice in chunk.choices:
            into = folded[choice.index]
            into["content"] += choice.delta.content or ""
            into["calls"] += "".join(call.function.arguments or "" for call in choice.delta.tool_calls or [])
            into["tokens"] += choice.logprobs.content if choice.logprobs else []
            into["finish"] = choice.finish_reason or into["finish"]
            into["roles"] += choice.delta.role is not None
    return folded


@pytest.mark.parametrize("tools", [{}, {"tools": [TOOL], "tool_choice": "required"}], ids=["text", "calls"])
def test_a_folded_chat_of_three_choices_with_logprobs_is_the_whole_one(client: openai.OpenAI, tools: dict) -> None:
    wishes = {"n": 3, "logprobs": True, "top_logprobs": 4, "max_tokens": 40, **tools}
    plain = chat(client, **wishes)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **wishes))  # type: ignore[call-overload]
    folded = fold(chunks)
    assert chunks[-1].usage == plain.usage
    assert sum(len(choice.logprobs.content) for choice in plain.choices) == plain.usage.completion_tokens
    for choice in plain.choices:
        calls = "".join(call.function.arguments for call in choice.message.tool_calls or [])
        assert folded[choice.index] == {
            "content": choice.message.content or "",
            "calls": calls,
            "tokens": choice.logprobs.content,
            "finish": choice.finish_reason,
            "roles": 1,
        }


def test_a_folded_completion_of_three_choices_with_logprobs_is_the_whole_one(client: openai.OpenAI) -> None:
    wishes = {"n": 3, "logprobs": 2, "echo": True, "max_tokens": 12}
    plain = complete(client, **wishes)
    folded: dict[int, Any] = defaultdict(lambda: ["", defaultdict(list), None])
    for chunk in complete(client, stream=True, **wishes):  # type: ignore[attr-defined]
        (choice,) = chunk.choices
        folded[choice.index][0] += choice.text
        for name, values in choice.logprobs.to_dict().items() if choice.logprobs else ():
            folded[choice.index][1][name] += values
        folded[choice.index][2] = choice.finish_reason or folded[choice.index][2]
    for choice in plain.choices:
        assert folded[choice.index] == [choice.text, choice.logprobs.to_dict(), choice.finish_reason]


# ── log-probabilities ────────────────────────────────────────────────────────────────────────────


def test_a_chat_s_logprobs_are_the_model_s_whatever_the_sampling(running: tuple[Address, LLM]) -> None:
    address, llm = running
    body = {"messages": HI, **BASE, "logprobs": True, "top_logprobs": 5, "temperature": 0.7, "presence_penalty": 1.5}
    response = address.http.post("/v1/chat/completions", json=body).json()
    ChatCompletion.model_validate(response, strict=True)
    content = response["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    history = render((Message(role="user", content="Hi"),)).ids(llm.tokenizer)
    for entry in content:
        truth = log_softmax(llm, history)
        best = sorted(range(len(truth)), key=lambda i: (-truth[i], i))[:5]
        assert [bytes(each["bytes"]) for each in entry["top_logprobs"]] == [llm.tokenizer.token_bytes(i) for i in best]
        # The engine's forward has a cache, this one none: sums of float32 in another order.
        assert [each["logprob"] for each in entry["top_logprobs"]] == pytest.approx([truth[i] for i in best], abs=1e-4)
        (token,) = [
            i
            for i in range(len(truth))
            if llm.tokenizer.token_bytes(i) == bytes(entry["bytes"])
            and math.isclose(truth[i], entry["logprob"], abs_tol=1e-4)
        ]
        history.append(token)


def test_without_alternatives_a_chat_tells_the_chosen_token_alone(client: openai.OpenAI) -> None:
    for entry in chat(client, logprobs=True).choices[0].logprobs.content:
        assert entry.top_logprobs == [] and entry.logprob < 0
    assert chat(client, logprobs=False).choices[0].logprobs is None


def test_a_completion_s_logprobs_and_an_echoed_prompt_s(running: tuple[Address, LLM]) -> None:
    address, llm = running
    body = {"prompt": IDS, **BASE, "logprobs": 3, "echo": True, "return_token_ids": True}
    Completion.model_validate(address.http.post("/v1/completions", json=body | {"echo": False}).json(), strict=True)
    response = address.http.post("/v1/completions", json=body).json()
    choice = response["choices"][0]
    ids = IDS + choice["token_ids"]
    told = choice["logprobs"]
    assert {len(values) for values in told.values()} == {len(ids)}
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    for place in range(1, len(ids)):
        truth = log_softmax(llm, ids[:place])
        assert told["token_logprobs"][place] == pytest.approx(truth[ids[place]], abs=1e-4)
        top = told["top_logprobs"][place]
        best = sorted(truth, reverse=True)[:3]
        assert list(top.values())[:3] == pytest.approx(best, abs=1e-4)
        assert told["token_logprobs"][place] in top.values()
        assert len(top) == 3 + (truth[ids[place]] < best[-1])
    assert choice["text"].startswith(llm.tokenizer.decode(IDS))
    offsets = told["text_offset"]
    for place, token in enumerate(told["tokens"]):
        if not token.startswith("bytes:") and (place == 0 or not told["tokens"][place - 1].startswith("bytes:")):
            assert choice["text"].startswith(token, offsets[place]) or token.startswith(("<|", "["))
    assert offsets == sorted(offsets) and offsets[-1] <= len(choice["text"])


def test_scoring_a_prompt_alone_generates_nothing(client: openai.OpenAI) -> None:
    """What evaluation runners ask for: echo, logprobs, and no or one token more."""
    alone = complete(client, echo=True, logprobs=1, max_tokens=0)
    longer = complete(client, echo=True, logprobs=1, max_tokens=1)
    assert alone.usage.completion_tokens == 0
    assert (alone.choices[0].finish_reason, len(alone.choices[0].logprobs.tokens)) == ("length", len(IDS))
    assert longer.choices[0].logprobs.token_logprobs[:-1] == alone.choices[0].logprobs.token_logprobs
    assert longer.choices[0].text.startswith(alone.choices[0].text)
    with pytest.raises(openai.BadRequestError, match="max_tokens is 0"):
        complete(client, max_tokens=0)


def test_echo_gives_a_text_back_as_it_was_sent(client: openai.OpenAI) -> None:
    prompt = "Grüße, 北京 🥨<|im_end|>!"
    plain, echoed = (complete(client, prompt=prompt, echo=echo, n=2) for echo in (False, True))
    assert [c.text for c in echoed.choices] == [prompt + c.text for c in plain.choices]
    assert echoed.choices[0].logprobs is None
    streamed: dict[int, str] = defaultdict(str)
    for chunk in complete(client, prompt=prompt, echo=True, n=2, stream=True):  # type: ignore[attr-defined]
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert [streamed[0], streamed[1]] == [c.text for c in echoed.choices]


# ── what is chosen ───────────────────────────────────────────────────────────────────────────────


def ids_of(client: openai.OpenAI, **wishes: Any) -> list[int]:
    extra = {"return_token_ids": True, **wishes.pop("extra_body", {})}
    return complete(client, extra_body=extra, **wishes).choices[0].token_ids


def test_a_bias_forces_and_forbids_and_unknown_ids_are_refused(client: openai.OpenAI) -> None:
    assert ids_of(client, logit_bias={"42": 100}) == [42] * 6
    greedy = ids_of(client, temperature=0)
    assert greedy[0] not in ids_of(client, temperature=0, logit_bias={str(greedy[0]): -100})
    for door in (chat, complete):
        with pytest.raises(openai.BadRequestError, match="99999") as refused:
            door(client, logit_bias={"5": 1, "99999": 1})
        assert refused.value.param == "logit_bias"


def test_penalties_keep_tokens_from_coming_again(client: openai.OpenAI) -> None:
    repeating = ids_of(client, temperature=0, max_tokens=30, logit_bias={"42": 30, "43": 29})
    assert repeating == [42] * 30
    alternating = ids_of(
        client, temperature=0, max_tokens=6, logit_bias={"42": 30, "43": 29.5}, frequency_penalty=2, presence_penalty=2
    )
    assert alternating[:2] == [42, 43] and set(alternating) == {42, 43}
    read = ids_of(
        client,
        prompt=[42],
        temperature=0,
        max_tokens=1,
        logit_bias={"42": 30, "43": 29},
        extra_body={"repetition_penalty": 2},
    )
    assert read == [43]


def test_stop_ids_end_unless_ignored_or_too_early(running: tuple[Address, LLM]) -> None:
    address, llm = running
    client, t = address.openai, llm.tokenizer
    for stop in sorted(t.stop_ids):
        assert ids_of(client, logit_bias={str(stop): 100}) == [stop]
        assert ids_of(client, logit_bias={str(stop): 100}, extra_body={"ignore_eos": True}) == [stop] * 6
        late = ids_of(client, logit_bias={str(stop): 100}, extra_body={"min_tokens": 4})
        assert len(late) == 5 and late[-1] == stop and not set(late[:4]) & t.stop_ids
        answer = chat(client, logit_bias={str(stop): 100}, extra_body={"ignore_eos": True})
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (6, "length")
    bias = {"42": 100}
    body = {"stop_token_ids": [42]}
    ended = complete(client, logit_bias=bias, extra_body=body | {"return_token_ids": True}).choices[0]
    assert (ended.token_ids, ended.text, ended.finish_reason) == ([42], "", "stop")
    said = chat(client, logit_bias=bias, extra_body=body)
    assert (said.choices[0].message.content, said.choices[0].finish_reason) == ("", "stop")


def test_ignored_ends_are_no_text_and_what_follows_them_is(running: tuple[Address, LLM]) -> None:
    """Beside a required call too: behind it nothing but the end may come, again and again."""
    address, llm = running
    end = llm.tokenizer.im_end
    wishes = {"temperature": 1.0, "max_tokens": 40, "logit_bias": {str(end): 7}, "extra_body": {"ignore_eos": True}}
    answer = chat(address.openai, logprobs=True, **wishes).choices[0]
    names = [entry.token for entry in answer.logprobs.content]
    first = names.index("<|im_end|>")
    assert any(name != "<|im_end|>" for name in names[first:]), "this seed tests nothing"
    between = [b""]  # a control token ends an unfinished character
    for entry in answer.logprobs.content:
        if entry.token in ("<|im_end|>", "[EOS]"):
            between.append(b"")
        else:
            between[-1] += bytes(entry.bytes)
    assert answer.message.content == "".join(piece.decode(errors="replace") for piece in between)
    call = chat(address.openai, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **wishes)
    assert call.usage.completion_tokens == 40
    assert json.loads(call.choices[0].message.tool_calls[0].function.arguments)["unit"] in ("C", "F")


def test_a_stop_string_before_min_tokens_is_text(client: openai.OpenAI) -> None:
    wishes = {"logit_bias": {"42": 100}, "max_tokens": 8}
    piece = complete(client, **wishes).choices[0].text[:1]
    assert piece
    assert complete(client, stop=piece, **wishes).choices[0].text == ""
    late = complete(client, stop=piece, extra_body={"min_tokens": 3}, **wishes)
    assert late.choices[0].text == complete(client, **(wishes | {"max_tokens": 3})).choices[0].text
    assert (late.usage.completion_tokens, late.choices[0].finish_reason) == (4, "stop")
