"""Tools that run something: a shell command, a piece of Python."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Annotated

from baltoro.agent.sandbox import Sandbox
from baltoro.agent.tool import AgentTool, ToolResult, tool
from baltoro.agent.watch import Ran
from baltoro.errors import ToolError

LONGEST_S = 600  # that a model may give a command


class Commands:
    """The tools of one sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        seconds_left: Callable[[], float | None] = lambda: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """seconds_left: of the episode's budget, which no command outlives; cancelled: True ends the command"""
        self._sandbox = sandbox
        self._seconds_left = seconds_left
        self._cancelled = cancelled

    def tools(self) -> list[AgentTool]:
        return [tool(each) for each in (self.shell, self.python)]

    def shell(
        self,
        command: Annotated[str, "for bash, or sh where there is no bash; begins in the workspace's root"],
        seconds: Annotated[int, "after which it is ended"] = 120,
    ) -> ToolResult:
        """Run a shell command and read what it prints. There is no network and nobody to answer questions.
        What it starts in the background ends with it; directories and variables are not kept for the next command."""
        return self._run([shutil.which("bash") or "/bin/sh", "-c", command], seconds)

    def python(
        self,
        code: Annotated[str, "a program; what it prints is the result"],
        seconds: Annotated[int, "after which it is ended"] = 120,
    ) -> ToolResult:
        """Run a Python program in the workspace's root and read what it prints. Nothing is kept for the next one."""
        return self._run([sys.executable, "-c", code], seconds)

    def _run(self, command: list[str], seconds: int) -> ToolResult:
        if not 1 <= seconds <= LONGEST_S:
            raise ToolError(f"seconds is {seconds}, expected 1 to {LONGEST_S}")
        if "\0" in command[-1]:
            raise ToolError("there is a NUL in it, which no command can have")
        left = self._seconds_left()
        return told(self._sandbox.run(command, seconds=min(seconds, left or seconds), cancelled=self._cancelled))


def told(ran: Ran) -> ToolResult:
    """What a model reads of a command."""
    end = f"[ended: {ran.ended}]" if ran.rc is None else f"[exit code {ran.rc}]"
    gap = "" if not ran.output or ran.output.endswith("\n") else "\n"
    return ToolResult(for_model=f"{ran.output}{gap}{end}", for_user=end.strip("[]"), failed=ran.rc != 0)
