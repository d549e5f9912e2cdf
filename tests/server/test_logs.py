"""Lines of a server: one form for all of them, and never a word of anybody's prompt."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.server import logs

SECRET = "my-secret-prompt"


def record(message: str = "told", name: str = "baltoro.server.app", error: BaseException | None = None, **more: object):
    caught = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord(name, logging.WARNING, __file__, 1, message, None, caught)
    made.__dict__.update(more)
    return made


def raised(*modules: str, error: str = "KeyError", cause: str = "") -> BaseException:
    """An error that came from the last of `modules`, each called by the one before it."""
    name, call = modules[-1], f"raise {error}('{SECRET}')"
    if cause:
        call = f"\n    try: raise {cause}('{SECRET}')\n    except {cause} as e: raise {error}('outer') from e"
    space: dict[str, object] = {"__name__": name}
    exec(f"def f():\n    {call}", space)
    for each in reversed(modules[:-1]):
        space = {"__name__": each, "inner": space["f"]}
        exec("def f(): inner()", space)
    f = space["f"]
    assert callable(f)
    try:
        f()
    except Exception as found:
        return found
    raise AssertionError


@given(
    st.text(), st.dictionaries(st.text(), st.one_of(st.none(), st.text(), st.integers(), st.floats(allow_nan=False)))
)
def test_json_is_one_line_an_object_whatever_is_said(message: str, facts: dict[str, object]) -> None:
    facts = {f"x_{name}": value for name, value in facts.items()}
    line = logs.JsonLines().format(record(message, facts=facts))
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("message") == message
    assert found.pop("level") == "warning"
    assert found.pop("logger") == "baltoro.server.app"
    assert abs(datetime.fromisoformat(found.pop("time")) - datetime.now(UTC)) < timedelta(minutes=1)
    assert found == facts


@pytest.mark.parametrize("lines", [logs.JsonLines, logs.TextLines])
@pytest.mark.parametrize(
    ("modules", "error", "cause"),
    [
        (["uvicorn.protocols", "baltoro.server.app"], "KeyError", ""),
        (["uvicorn.protocols", "baltoro.server.app", "jsonschema.validators"], "ValueError", ""),
        (["baltoro.engine.output", "baltoro.chat.grammar", "llguidance"], "ValueError", ""),
        (["baltoro.llm"], "RuntimeError", "KeyError"),
    ],
)
def test_an_error_is_told_without_its_message_where_texts_were_at_hand(
    lines: Callable[[], logging.Formatter], modules: list[str], error: str, cause: str
) -> None:
    line = lines().format(record(error=raised(*modules, error=error, cause=cause)))
    assert SECRET not in line
    assert error in line
    assert cause in line
    assert "in f" in line  # where


@pytest.mark.parametrize("lines", [logs.JsonLines, logs.TextLines])
def test_an_error_of_the_engine_is_told_with_its_message(lines: Callable[[], logging.Formatter]) -> None:
    error = raised("baltoro.engine.loop", "baltoro.model.transformer", "torch", error="RuntimeError", cause="OSError")
    line = lines().format(record(name="baltoro.engine.loop", error=error))
    assert line.index(f"OSError: {SECRET}") < line.index("RuntimeError: outer")


def test_an_error_that_causes_itself_is_told_once() -> None:
    error = raised("baltoro.engine.loop")
    error.__cause__ = error
    assert logs.JsonLines().format(record(error=error)).count("KeyError") == 1


def test_what_asyncio_says_behind_its_first_line_is_left_out() -> None:
    line = logs.JsonLines().format(
        record(f"Task exception was never retrieved\nfuture: {KeyError(SECRET)!r}", "asyncio")
    )
    assert json.loads(line)["message"] == "Task exception was never retrieved"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was written to stderr; logging is as before afterwards."""
    before = {name: (each.level, each.handlers[:]) for name, each in (("", logging.root), ("baltoro", _ours()))}
    hooks = sys.excepthook, logs.threading.excepthook
    yield lambda: capsys.readouterr().err
    for name, (level, handlers) in before.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).handlers[:] = handlers
    logging.captureWarnings(False)
    sys.excepthook, logs.threading.excepthook = hooks


def _ours() -> logging.Logger:
    return logging.getLogger("baltoro")


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", {"debug", "info", "warning", "error", "library"}),
        ("info", {"info", "warning", "error", "library"}),
        ("warning", {"warning", "error", "library"}),
        ("error", {"error"}),
    ],
)
def test_a_level_is_ours_and_libraries_never_tell_details(told: Callable[[], str], level: str, heard: set[str]) -> None:
    logs.configure(as_json=True, level=level)
    for each in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("baltoro.engine.loop"), each)(each)
    logging.getLogger("httpx").debug("no")
    logging.getLogger("httpx").info("no")
    logging.getLogger("httpx").warning("library")
    assert {json.loads(line)["message"] for line in told().splitlines()} == heard


def test_warnings_of_python_have_the_same_form(told: Callable[[], str]) -> None:
    logs.configure(as_json=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)  # pytest has its own way to catch them
        warnings.warn("old", stacklevel=1)
    assert "old" in json.loads(told())["message"]


def test_what_ends_a_thread_or_the_process_has_the_same_form() -> None:
    program = """
import threading
from baltoro.server import logs
logs.configure(as_json=True)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise ValueError("nothing secret")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    first, second = map(json.loads, done.stderr.splitlines())
    assert (first["level"], second["level"]) == ("critical", "critical")
    assert "ZeroDivisionError" in first["error"]
    assert "ValueError: nothing secret" in second["error"]
