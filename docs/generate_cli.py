"""Print docs/cli.md: every command of `baltoro` with its arguments and options. `make docs` runs this."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

from baltoro.cli import app

HEAD = """# The command line

Written by `make docs` from the help texts; do not edit.

"""


def page(root: Any) -> str:
    """The reference of a typer application, from the same objects that its `--help` prints."""
    sections = [HEAD + plain(root.help)]
    for name, command in commands("baltoro", root):
        rows = [row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        table = "\n".join(["| | | default |", "|---|---|---|", *rows]) if rows else ""
        sections += [f"## {name}", plain(command.help), table]
    return "\n\n".join(section for section in sections if section) + "\n"


def commands(prefix: str, group: Any) -> Iterator[tuple[str, Any]]:
    """(whole name, command) of everything that can be run, in the order of `--help`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(f"{prefix} {name}", command)
        elif not command.hidden:
            yield f"{prefix} {name}", command


def row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{(parameter.metavar or parameter.name).upper()}`"
    else:
        name = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    if parameter.required:
        default = "required"
    elif isinstance(shown, bool):
        default = ""  # a switch, off unless given
    else:
        default = f"`{shown}`" if isinstance(shown, str | int | float) else ""
    return f"| {name} | {plain(parameter.help).replace('|', '&#124;')} | {default} |"


def plain(help_text: str | None) -> str:
    return inspect.cleandoc(help_text or "")


if __name__ == "__main__":
    typer.echo(page(get_command(app)), nl=False)
