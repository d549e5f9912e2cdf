from __future__ import annotations

import pytest

from baltoro.weights import display
from baltoro.weights.display import Display, duration, size


def test_figures_are_those_of_a_disk_s_label() -> None:
    assert [size(count) for count in (999, 41_000, 2_200_000, 1_029_173_256_720)] == [
        "999 B", "41.0 kB", "2.2 MB", "1,029.2 GB",
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (5, 600, 9000)] == ["5 s", "10 min", "2 h 30 min"]


def test_without_a_terminal_a_line_says_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    with Display("fetching") as shown:
        for _ in range(40):
            now += 1
            done = int(now - 100) * 10**9
            shown.update(here=done, total=1000 * 10**9, moved=done)
    assert "fetching 16.0 GB of 1,000.0 GB, 1.0 GB/s, 16 min left" in capsys.readouterr().err
