"""`serve --engine vllm`: another engine as a child of this process, and the gateway before it."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from baltoro.errors import PlanError

if TYPE_CHECKING:
    from baltoro.cli.operations import Say
    from baltoro.plan.launch.local import Child


class Engine(StrEnum):
    baltoro = "baltoro"
    vllm = "vllm"


@contextmanager
def started(model: str, name: str, given: list[str], *, max_context: int | None, say: Say) -> Generator[Child]:
    """vLLM with MODEL, from its first answer until the end of the context. given: options of its own"""
    from baltoro.plan.launch import local

    port = local.free_port()
    argv = local.command(model, name=name, port=port, planned=_planned(model, max_context, say), given=given)
    patience_s = local.patience_s(model)
    say(f"starting vLLM, which has {patience_s:.0f} s to load {model} ...")
    before = signal.signal(signal.SIGTERM, _leave)  # else vLLM would stay behind; the server has its own while it runs
    try:
        with local.Child(argv, port) as child:
            child.wait(patience_s, say)
            yield child
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(128 + number)


def _planned(model: str, max_context: int | None, say: Say) -> list[str]:
    """What fits the GPUs of this machine; without any, and for models of others, vLLM's own defaults."""
    from baltoro.config import ModelConfig
    from baltoro.doctor import here
    from baltoro.plan import planner
    from baltoro.plan.launch import vllm
    from baltoro.plan.machine import catalogue
    from baltoro.plan.memory import Wish

    known = catalogue()
    card, count, unknown = here.gpus_here(known.gpus)
    length = [] if max_context is None else ["--max-model-len", str(max_context)]
    if card is None or not Path(model).is_dir():
        if unknown:
            say(f"{unknown} is not in the catalogue: vLLM starts with its own defaults")
        return length
    config = ModelConfig.open(model)
    wish = Wish(context=max_context or config.max_position_embeddings, place="gpu")
    machine = here.described(card, count)
    plan = planner.make(model, config, machine, wish, card=card, format=planner.own_format(config))
    if plan.memory.place != "gpu":
        raise PlanError(f"{model} does not fit {machine.title}", hint="`baltoro plan` says what would")
    return list(vllm.options(plan))
