"""The simulated world: what calls do, what they are told, what fails and what it leaves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.chat.messages import Tool, ToolCall
from baltoro.train.synthesis.sessions import make_session
from baltoro.train.synthesis.simulator import Faults, Operation, Simulator, State, Verb

START: State = {"boat": {"Anna": {"size": 5, "crew": 2}, "Bo": {"size": 7, "crew": 2}}}


def operation(verb: Verb, **fields: Any) -> Operation:
    properties = {
        "name": {"type": "string"},
        "to": {"type": "string"},
        "size": {"type": "integer"},
        "crew": {"type": "integer"},
    }
    wanted = {"create": ["name", "size"], "list": [], "transfer": ["name", "to", "size"]}.get(verb, ["name"])
    parameters = {"type": "object", "properties": properties, "required": wanted}
    tool = Tool(name=f"{verb}_boat", parameters=parameters, declaration={})
    kept = {"transfer": {"size": "size"}}.get(verb, {"size": "size", "crew": "crew"})
    return Operation(tool, verb, "boat", "" if verb == "list" else "name", kept, other="to", **fields)


VERBS: tuple[Verb, ...] = ("create", "get", "list", "update", "delete", "transfer")


def world(**settings: Any) -> Simulator:
    return Simulator(START, [operation(verb) for verb in VERBS], **settings)


def ask(simulator: Simulator, name: str, /, **arguments: Any) -> tuple[Any, str]:
    result = simulator.call(ToolCall(id="", name=f"{name}_boat", arguments=json.dumps(arguments)))
    return json.loads(result.content), result.outcome


def test_operations_read_and_change_the_state() -> None:
    boats = world()
    assert ask(boats, "get", name="Anna") == ({"size": 5, "crew": 2}, "done")
    assert ask(boats, "create", name="Cy", size=1)[1] == "done"
    assert ask(boats, "update", name="Cy", crew=4)[1] == "done"
    assert ask(boats, "list", crew=2) == ({"results": ["Anna", "Bo"]}, "done")
    assert ask(boats, "delete", name="Bo")[1] == "done"
    assert ask(boats, "transfer", name="Anna", to="Cy", size=2)[0] == {"status": "moved", "Anna": 3, "Cy": 3}
    assert boats.state == {"boat": {"Anna": {"size": 3, "crew": 2}, "Cy": {"size": 3, "crew": 4}}}
    assert START["boat"].keys() == {"Anna", "Bo"}  # each world has its own


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("get", {"name": "Zoe"}, "Zoe not found"),
        ("delete", {"name": "Zoe"}, "Zoe not found"),
        ("update", {"name": "Zoe", "size": 1}, "Zoe not found"),
        ("update", {"name": "Bo"}, "nothing to change"),
        ("create", {"name": "Bo", "size": 1}, "Bo already exists"),
        ("create", {"name": "Cy"}, "'size' is a required property"),
        ("create", {"name": "Cy", "size": "big"}, "invalid size"),
        ("create", {"name": "Cy", "size": 1, "colour": "red"}, "unknown parameter colour"),
        ("transfer", {"name": "Bo", "to": "Anna", "size": 8}, "not enough size"),
        ("transfer", {"name": "Bo", "to": "Anna", "size": -1}, "invalid size"),
        ("transfer", {"name": "Bo", "to": "Bo", "size": 1}, "Bo cannot give to itself"),
        ("transfer", {"name": "Bo", "to": "Zoe", "size": 1}, "Zoe not found"),
        ("paint", {}, "unknown function paint_boat"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason_and_changes_nothing(
    name: str, arguments: dict[str, Any], reason: str
) -> None:
    boats = world()
    assert ask(boats, name, **arguments) == ({"error": reason}, "refused")
    assert boats.state == START


@pytest.mark.parametrize("arguments", ["{", "[]", "3", "[" * 100_000])
def test_arguments_that_are_no_json_object_are_refused(arguments: str) -> None:
    boats = world()
    result = boats.call(ToolCall(id="", name="get_boat", arguments=arguments))
    assert result.outcome == "refused"
    assert "arguments" in json.loads(result.content)["error"]


def test_a_world_that_is_never_there_serves_a_call_that_is_made_again() -> None:
    boats = world(faults=Faults(unavailable=1.0))
    assert ask(boats, "delete", name="Bo") == ({"error": "service unavailable"}, "refused")
    assert boats.state == START
    assert ask(boats, "delete", name="Bo")[1] == "done"


def test_a_part_is_done_and_the_result_says_what_is_missing() -> None:
    boats = world(faults=Faults(partial=1.0))
    assert ask(boats, "update", name="Bo", size=1, crew=9) == ({"updated": ["size"], "failed": ["crew"]}, "partial")
    assert boats.state["boat"]["Bo"] == {"size": 1, "crew": 2}
    assert ask(boats, "update", name="Bo", size=1, crew=9)[1] == "done"
    assert ask(boats, "list") == ({"results": ["Anna"], "more": 1}, "partial")
    assert ask(boats, "list")[0] == {"results": ["Anna", "Bo"]}
    assert ask(boats, "delete", name="Bo")[1] == "done"  # it has no parts


CALLS = st.lists(
    st.tuples(
        st.sampled_from([*VERBS, "paint"]),
        st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["Anna", "Bo", "Cy"]) | st.integers(),
                "to": st.sampled_from(["Anna", "Bo"]),
                "size": st.integers(-5, 9),
                "crew": st.integers(0, 3) | st.none(),
            },
        ),
    ),
    max_size=12,
)


@given(calls=CALLS, seed=st.integers(0, 99))
@settings(max_examples=60)
def test_any_calls_give_the_same_world_again_and_refusals_leave_it_alone(calls: list[Any], seed: int) -> None:
    faults = Faults(unavailable=0.3, partial=0.3)
    one, two = world(faults=faults, seed=seed), world(faults=faults, seed=seed)
    for name, arguments in calls:
        before = json.dumps(one.state)
        total = sum(record.get("size", 0) for record in one.state["boat"].values())
        found = ask(one, name, **arguments)
        assert found == ask(two, name, **arguments)
        if found[1] == "refused":
            assert json.dumps(one.state) == before
        if name == "transfer":
            assert sum(record.get("size", 0) for record in one.state["boat"].values()) == total
    assert one.state == two.state


@pytest.mark.parametrize("number", range(30))
def test_a_session_ends_as_it_should_when_its_own_calls_are_made(number: int) -> None:
    session = make_session(3, number)
    assert session == make_session(3, number)
    simulator = Simulator(session.state, session.operations)
    for errand in session.errands:
        content = simulator.call(errand.call).content
        assert all(mention in content for mention in errand.mentions)
        assert all(str(value) in errand.request for value in json.loads(str(errand.call.arguments)).values())
    assert simulator.state == session.wanted
