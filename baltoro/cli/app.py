"""The program itself: its name, its version, and what becomes of an error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from baltoro.errors import BaltoroError

if TYPE_CHECKING:
    pass


app = typer.Typer(
    name="baltoro",
    help="Run, train and serve Kimi K2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point: what a user can repair is explained in two lines, without a traceback."""
    try:
        app(prog_name="baltoro")
    except BaltoroError as error:
        _fail(error)


def _fail(error: BaltoroError) -> None:
    hint = f"\n  hint: {error.hint}" if error.hint else ""
    typer.echo(f"error: {error.message}{hint}", err=True)
    sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("baltoro")
        except PackageNotFoundError:
            number = "from a source tree that is not installed"
        typer.echo(f"baltoro {number}")
        raise typer.Exit


@app.callback()
def baltoro(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
