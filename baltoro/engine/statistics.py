"""What the engine does, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The engine at one moment, and what it has done since it started."""

    running: int  # requests holding pages
    waiting: int  # requests submitted or preempted
    free_pages: int  # that can be had, those of the prefix tree that nobody holds included
    num_pages: int
    prefix_pages: int  # in the prefix tree
    generated_tokens: int
    prefilled_tokens: int  # prompt tokens computed; those computed again after a preemption count again
    steps: int
    drafted_tokens: int  # proposed before the model was asked
    foreseen_tokens: int  # and said by it: each spared a step
    preemptions: int
    failed_steps: int
    prefix_hits: int  # admissions that found the beginning of their prompt
    reused_tokens: int  # that they did not compute; those found again after a preemption count again
    evicted_pages: int  # of the prefix tree
    spilled_bytes: int  # of them, written to disk
    restored_bytes: int  # and read from there
