"""Coding agents as their users start them, by script: one turn in which a command runs, each over its own API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.conftest import Start, node, run

pytestmark = pytest.mark.clients
QUIET = {
    "ANTHROPIC_MODEL": "tiny",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "131072",
}
CODEX = """
model = "tiny"
model_provider = "baltoro"
model_context_window = 131072

[model_providers.baltoro]
name = "Baltoro"
base_url = "{url}/v1"
env_key = "BALTORO_API_KEY"
wire_api = "responses"
"""
KIMI = """
default_model = "k2"
telemetry = false

[providers.baltoro]
type = "{kind}"
base_url = "{url}"
api_key = "none"

[models.k2]
provider = "baltoro"
model = "tiny"
max_context_size = 131072
"""


@pytest.mark.parametrize("tool_search", [{}, {"ENABLE_TOOL_SEARCH": "false"}], ids=["as it comes", "as documented"])
def test_claude_code_runs_a_command(start: Start, tmp_path: Path, tool_search: dict[str, str]) -> None:
    claude = node("claude-code") / "claude"
    agent, address = start({"Bash": {"command": "echo from-claude-code", "description": "say"}})
    printed = run(
        [str(claude), "-p", "Say it.", "--allowedTools", "Bash", "--output-format", "json"], tmp_path,
        ANTHROPIC_BASE_URL=address.url, ANTHROPIC_AUTH_TOKEN="none", **QUIET, **tool_search,
    )  # fmt: skip
    answer = json.loads(printed)
    assert (answer["result"], answer["is_error"], answer["num_turns"]) == (
        "The tool said: from-claude-code",
        False,
        2,
    )
    assert answer["modelUsage"]["tiny"]["contextWindow"] == 131072
    assert len(agent.requests) == 2  # what is refused before never reached the model
    assert len(agent.requests[0].tools) > 15


def test_codex_runs_a_command(start: Start, tmp_path: Path) -> None:
    codex = node("codex") / "codex"
    agent, address = start({"exec_command": {"cmd": "echo from-codex"}})
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex/config.toml").write_text(CODEX.format(url=address.url))
    printed = run(
        [str(codex), "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "Say it."],
        tmp_path,
        BALTORO_API_KEY="none",
    )
    assert printed.startswith("The tool said: ") and "from-codex" in printed
    assert len(agent.requests) == 2


@pytest.mark.parametrize(("kind", "path"), [("kimi", "/v1"), ("openai", "/v1"), ("anthropic", "")])
def test_kimi_code_runs_a_command(start: Start, tmp_path: Path, kind: str, path: str) -> None:
    programs = node("kimi-code")
    agent, address = start({"Bash": {"command": "echo from-kimi-code"}})
    (tmp_path / ".kimi-code").mkdir()
    (tmp_path / ".kimi-code/config.toml").write_text(KIMI.format(kind=kind, url=address.url + path))
    printed = run(
        [str(programs / "node"), str(programs / "kimi"), "-p", "Say it."], tmp_path, KIMI_CODE_NO_AUTO_UPDATE="1"
    )
    assert "The tool said: " in printed and "from-kimi-code" in printed
    assert len(agent.requests) == 2
    assert agent.requests[0].max_tokens is not None
