"""The command line: each command parses, calls one function of the library, prints.

Data to stdout, talk to stderr. Exit 0: done; 1: an explained failure; 2: wrong usage.
"""

from baltoro.cli import talk, agent, keys, replay, files, plan, doctor, train, evaluate, evals, bench  # isort: skip  (they stand in `--help` in this order)
from baltoro.cli.app import app, main

__all__ = [
    "agent",
    "app",
    "bench",
    "doctor",
    "evals",
    "evaluate",
    "files",
    "keys",
    "main",
    "plan",
    "replay",
    "talk",
    "train",
]
