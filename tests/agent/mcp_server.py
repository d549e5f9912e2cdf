"""A server written with the official SDK: python mcp_server.py [PORT]; by stdio without one."""

import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("test server")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool(name="say.it/loud")
def say(text: str) -> str:
    """Say it."""
    return text.upper()


@server.tool()
def fail(why: str) -> str:
    """Always fails."""
    raise ValueError(why)


@server.tool()
def leave() -> str:
    """Ends the server."""
    import os

    os._exit(3)


if len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    server.run("stdio")
