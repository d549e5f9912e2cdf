"""Python libraries for agents, each in its own environment: a turn with a tool completes on every one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Start, installed, run

pytestmark = pytest.mark.clients
CALLS = {"get_weather": {"city": "Skardu"}}
END = "The tool said: Sunny in Skardu."
PROGRAMS = Path(__file__).parent / "programs"


def said(environment: str, program: str, start: Start, home: Path, **variables: str) -> dict[str, Any]:
    python = installed(environment, "bin/python")
    _, address = start(CALLS)
    printed = run([str(python), str(PROGRAMS / program), address.url], home, **variables)
    return json.loads(printed.splitlines()[-1])


def test_langchain_runs_an_agent_a_loop_and_streams(start: Start, tmp_path: Path) -> None:
    told = said("langchain", "langchain_agent.py", start, tmp_path, LANGSMITH_TRACING="false")
    assert told["agent"] == ["human", "ai", "tool", "ai", END]
    assert told["loop"] == END
    assert told["stream"] == {"calls": [{"city": "Skardu"}], "tokens": 15}
    assert told["responses"] == ["human", "ai", "tool", "ai", END]


def test_llama_index_runs_an_agent_and_predict_and_call(start: Start, tmp_path: Path) -> None:
    told = said("llama-index", "llama_index_agent.py", start, tmp_path)
    assert told["agent"] == END
    assert told["predict_and_call"] == "Sunny in Skardu."
    assert told["stream"] == told["complete"] == "Hello."


def test_litellm_runs_the_tool_loop_in_both_dialects(start: Start, tmp_path: Path) -> None:
    told = said("litellm", "litellm_tools.py", start, tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True")
    assert told["chat"] == told["messages"] == ["tool_calls", "stop", END]
    assert json.loads(told["chat stream"]) == json.loads(told["messages stream"]) == {"city": "Skardu"}
    assert told["responses"] == "Hello."
