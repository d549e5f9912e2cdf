#!/usr/bin/env bash
# The clients of tests/clients, each in an environment of its own under build/clients: they cannot share one.
# Needs Python 3.11 or later, and npm for the three programs; what is there at its version already stays.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=build/clients
mkdir -p "$here"

python() { # NAME PACKAGE...
  local name=$1 wanted="${*:2}"
  if [ "$(cat "$here/$name/.installed" 2>/dev/null)" = "$wanted" ]; then return; fi
  echo "$name: $wanted"
  rm -rf "${here:?}/$name"
  "${PYTHON:-python3}" -m venv "$here/$name"
  "$here/$name/bin/pip" install --quiet --disable-pip-version-check "${@:2}"
  echo "$wanted" > "$here/$name/.installed"
}

program() { # NAME PACKAGE...
  local name=$1 wanted="${*:2}"
  if [ "$(cat "$here/$name/.installed" 2>/dev/null)" = "$wanted" ]; then return; fi
  echo "$name: $wanted"
  rm -rf "${here:?}/$name"
  npm install --silent --no-audit --no-fund --prefix "$here/$name" "${@:2}"
  echo "$wanted" > "$here/$name/.installed"
}

python langchain langchain==1.5.2 langchain-openai==1.7.4 rank-bm25==0.2.2
python llama-index llama-index-core==0.14.25 llama-index-llms-openai-like==0.8.1 llama-index-retrievers-bm25==0.8.0
python litellm litellm==1.110.2 mcp==2.3.0
if command -v npm > /dev/null; then
  program claude-code @anthropic-ai/claude-code@2.1.332
  program codex @openai/codex@0.171.0
  program kimi-code @moonshot-ai/kimi-code@2.1.0 node@22.23.3 # Debian's node is too old for it
else
  echo "no npm: Claude Code, Codex and kimi-code are left out"
fi
