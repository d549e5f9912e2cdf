"""A mean over problems that were answered once or several times, and how sure it makes us."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

from baltoro.eval.score import Interval, wilson


def interval(problems: Sequence[Sequence[bool]], z: float = 1.96) -> Interval:
    """problems: verdicts by problem. One answer each: Wilson's. Several: answers to one problem are no independent
    trials, so the problems' means are what varies (a clustered standard error), and `total` counts problems.
    """
    if all(len(answers) == 1 for answers in problems):
        return wilson(sum(answers[0] for answers in problems), len(problems), z)
    means = [mean(answers) for answers in problems]
    if len(means) < 2:
        return Interval(mean(means), 0.0, 1.0, len(means))
    half = z * stdev(means) / math.sqrt(len(means))
    middle = mean(means)
    return Interval(middle, max(0.0, middle - half), min(1.0, middle + half), len(means))
