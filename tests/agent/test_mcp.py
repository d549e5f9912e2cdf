"""Against servers written with the official SDK, each a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.agent.loop import Loop
from baltoro.agent.mcp import McpServer, callable_name, connect
from baltoro.agent.mcp_wire import events
from baltoro.agent.tool import by_name
from baltoro.errors import BaltoroError
from baltoro.scripted import ScriptedLLM
from tests.agent.script import said

SERVER = str(Path(__file__).with_name("mcp_server.py"))


@pytest.fixture(params=["stdio", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[McpServer]:
    pytest.importorskip("mcp.server.mcpserver", reason="the official SDK is not installed: pip install 'mcp>=2'")
    if request.param == "stdio":
        with connect(f"{sys.executable} {SERVER}") as found:
            yield found
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, SERVER, str(port)], stderr=subprocess.DEVNULL)
    try:
        end_s = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None
            assert time.monotonic() < end_s
            time.sleep(0.05)
        with connect(f"http://127.0.0.1:{port}/mcp") as found:
            yield found
    finally:
        process.kill()
        process.wait()


def test_a_server_s_tools_are_called_as_ours_are(server: McpServer) -> None:
    tools = by_name(server.tools())
    assert list(tools) == [f"test_server__{name}" for name in ("add", "say_it_loud", "fail", "leave")]
    assert tools["test_server__add"].description == "Add two numbers."
    assert tools["test_server__add"]({"a": 2, "b": 3}).for_model == "5"
    assert tools["test_server__say_it_loud"]({"text": "ä"}).for_model == "Ä"
    assert "'b' is a required property" in tools["test_server__add"]({"a": 2}).for_model
    failed = tools["test_server__fail"]({"why": "no luck"})
    assert failed.failed
    assert "Error executing tool fail" in failed.for_model  # the SDK keeps the reason to itself

    model = ScriptedLLM([said("", ("test_server__add", {"a": 20, "b": 22})), said("42")])
    episode = Loop(model=model, tools=list(tools.values())).run("add")
    assert [each.result.for_model for each in episode.turns[0].results] == ["42"]

    ended = tools["test_server__leave"]({})  # the last: nobody is there any more
    assert ended.failed
    assert tools["test_server__add"]({"a": 2, "b": 3}).failed


@pytest.mark.parametrize(
    "where", ["", "'", "/nothing/here", f"{sys.executable} -c pass", "http://127.0.0.1:9/mcp", "cat"]
)
def test_what_is_no_server_is_told(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baltoro.agent.mcp.START_S", 1.0)
    with pytest.raises(BaltoroError):
        connect(where)


@given(st.lists(st.tuples(st.text(max_size=80), st.text(max_size=80)), max_size=8))
def test_every_name_becomes_one_that_k2_can_call_and_no_two_the_same(names: list[tuple[str, str]]) -> None:
    from baltoro.agent.tool import AgentTool, ToolResult

    taken: set[str] = set()
    for server, name in names:
        found = callable_name(server, name, taken)
        assert found not in taken
        taken.add(found)
        AgentTool(name=found, description="", parameters={}, run=lambda _: ToolResult(for_model=""))  # or it is refused


def test_events_are_read_as_the_standard_has_them() -> None:
    lines = ["", ": hello", "event: message", "data: {", "data:}", "", "id: 3", "", "data: 2", "", "data: torn"]
    assert list(events(lines)) == ["{\n}", "2"]
