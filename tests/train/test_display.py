"""Where there is no terminal a run says a line now and then, on stderr."""

from __future__ import annotations

import pytest

from baltoro.train.display import QUIET_STEPS, Display


def test_off_a_terminal_every_fiftieth_step_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.say("going on [at] step 3")
        for phase in ("copy", "language"):
            display.phase(phase, 0, 120)
            for step in range(1, 121):
                display.step(step, f"loss of {phase} {step}")
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "going on [at] step 3",
        *(f"step {n}  loss of {phase} {n}" for phase in ("copy", "language") for n in (QUIET_STEPS, 2 * QUIET_STEPS)),
    ]
