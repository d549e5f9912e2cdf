"""Episodes as token ids: drawn by the engine, turn by turn, with the log-probability of every token as it was drawn.

A rollout may be put aside in the middle of a turn and go on under other weights; its earlier tokens keep what they
were drawn with. What is kept of it, in memory and on disk, are the assistant's tokens: all else follows from its task
(environment.py).

Answers are drawn freely, without the grammar of the server. So what the policy is needs no mask to be remembered, the
form of a call is learned like the rest, and it holds in front of engines that have no grammar.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from baltoro.chat.messages import Message
from baltoro.chat.parser import Parser, fold
from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.engine.engine import Engine
from baltoro.engine.request import FinishReason, Request, SamplingParams, Step
from baltoro.errors import EngineError
from baltoro.train.environment import Environment
from baltoro.train.tasks import Task


@dataclass(slots=True)
class Drawn:
    """Tokens of one assistant's turn, and how each was drawn."""

    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])  # by the engine, of softmax(logits / temperature)
    temperatures: list[float] = field(default_factory=list[float])


class Rollout:
    """One episode of one task, as far as it has come."""

    def __init__(self, group: int, sample: int, task: Task, tokenizer: Tokenizer) -> None:
        self.group, self.sample = group, sample
        self.reward: float | None = None  # None: it has not ended, or was cut
        self.cut = False  # it needed more tokens than its budget, or than the context holds
        self.turns = [Drawn()]
        self.ids: list[int] = []  # the conversation so far
        self.positions: list[int] = []  # in `ids`, of all drawn tokens
        self.transcript: list[Message] = []  # behind the prompt
        self._tokenizer = tokenizer
        self._budget = task.answer_tokens
        self._environment: Environment = task.make()
        self.prompt = self._environment.reset()
        self.ids += render(self.prompt.messages, self.prompt.tools).ids(tokenizer)
        self._num_calls = sum(len(message.tool_calls) for message in self.prompt.messages)

    @property
    def ended(self) -> bool:
        return self.cut or self.reward is not None

    @property
    def stop_ids(self) -> frozenset[int]:
        return self._tokenizer.stop_ids

    @property
    def num_drawn(self) -> int:
        return len(self.positions)

    def room(self, max_context: int) -> int:
        """Tokens that may still be drawn."""
        return min(self._budget - self.num_drawn, max_context - len(self.ids))

    def draw(self, token: int, logprob: float, temperature: float) -> None:
        """The assistant goes on with `token`; a stop token ends its turn, and the environment answers."""
        turn = self.turns[-1]
        turn.ids.append(token)
        turn.logprobs.append(logprob)
        turn.temperatures.append(temperature)
        self.positions.append(len(self.ids))
        self.ids.append(token)
        if token in self._tokenizer.stop_ids:
            self._answered(turn.ids)

    def _answered(self, ids: Sequence[int]) -> None:
        parser = Parser(self._tokenizer, next_index=self._num_calls)
        deltas = [delta for token in ids[:-1] for delta in parser.push(token)] + parser.finish()
        answer = fold(deltas, parser.malformed)
        self._num_calls += len(answer.calls)
        self.transcript.append(Message(role="assistant", content=answer.content, tool_calls=answer.calls))
        following = self._environment.step(answer)
        if following.reward is not None:
            self.reward = following.reward
            return
        self.transcript += following.messages
        end = self._tokenizer.special_id("<|im_end|>")
        if self.ids[-1] != end:  # [EOS] ends an answer too, and no turn of a conversation
            self.ids.append(end)
        self.ids += render(following.messages, begins=False).ids(self._tokenizer)
        self.turns.append(Drawn())

    @property
    def logprobs(self) -> list[float]:
        return [each for turn in self.turns for each in turn.logprobs]

    @property
    def temperatures(self) -> list[float]:
        return [each for turn in self.turns for each in turn.temperatures]

    def saved(self) -> dict[str, Any]:
        """For JSON; floats keep all their bits."""
        turns = [{"ids": t.ids, "logprobs": t.logprobs, "temperatures": t.temperatures} for t in self.turns]
        return {"sample": self.sample, "cut": self.cut, "turns": turns}

    def replay(self, saved: dict[str, Any]) -> None:
        """Take up what `saved` has kept of it."""
        for turn in saved["turns"]:
            for drawn in zip(turn["ids"], turn["logprobs"], turn["temperatures"], strict=True):
                self.draw(*drawn)
        self.cut = saved["cut"]


@dataclass(frozen=True, slots=True)
class Group:
    """The K rollouts of one task."""

    number: int
    task: Task
    rollouts: tuple[Rollout, ...]

    @staticmethod
    def of(number: int, task: Task, samples: int, tokenizer: Tokenizer) -> Group:
        return Group(number, task, tuple(Rollout(number, each, task, tokenizer) for each in range(samples)))

    @property
    def ended(self) -> bool:
        return all(rollout.ended for rollout in self.rollouts)


def run(engine: Engine, groups: Iterable[Group], *, temperature: float, allowance: int, seed: int) -> None:
    """Draw until every rollout has ended or has drawn `allowance` tokens (0: no limit).

    Turns go in rounds: a round's requests are submitted at once, and the next round begins when all of them have ended.
    So the engine takes the same steps in a run that was interrupted and in one that was not.
    Raises EngineError where the engine fails.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    limits = {id(rollout): rollout.num_drawn + allowance for rollout in rollouts}
    while True:
        asked: list[tuple[Rollout, int]] = []
        for rollout in rollouts:
            if rollout.ended:
                continue
            room = rollout.room(engine.max_context)
            if room < 1:
                rollout.cut = True
                continue
            left = limits[id(rollout)] - rollout.num_drawn if allowance else room
            if left > 0:
                asked.append((rollout, min(room, left)))
        if not asked:
            return
        _round(engine, asked, temperature, seed)


def _round(engine: Engine, asked: Sequence[tuple[Rollout, int]], temperature: float, seed: int) -> None:
    heard: list[list[Step]] = [[] for _ in asked]
    left = threading.Semaphore(0)
    engine.submit_all(
        Request(
            prompt=list(rollout.ids),
            sampling=SamplingParams(
                max_tokens=most,
                temperature=temperature,
                seed=_seed(seed, rollout),
                stop_token_ids=rollout.stop_ids,
                logprobs=0,
                tempered_logprobs=True,
            ),
            sink=partial(_hear, steps, left.release),
        )
        for (rollout, most), steps in zip(asked, heard, strict=True)
    )
    for _ in asked:
        left.acquire()
    for (rollout, _), steps in zip(asked, heard, strict=True):
        for step in steps:
            if step.finish is FinishReason.ERROR:
                raise step.error if step.error is not None else EngineError("the engine gave up a rollout")
            assert step.token is not None and step.scored is not None
            rollout.draw(step.token, step.scored.logprob, temperature)


def _hear(steps: list[Step], ended: Callable[[], None], step: Step) -> None:
    """On the engine's thread, which does not wait for environments."""
    steps.append(step)
    if step.finish is not None:
        ended()


def _seed(seed: int, rollout: Rollout) -> int:
    """Each request's own draws: they depend on the rollout and on how far it has come, not on who runs beside it."""
    name = f"{seed}/{rollout.group}/{rollout.sample}/{rollout.num_drawn}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
