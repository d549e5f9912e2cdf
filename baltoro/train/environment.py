"""What a rollout talks to, in the manner of Gym: `reset` gives the prompt, `step` takes an answer, gives what follows.

An environment depends on what it was made of and on the answers alone. So a rollout that was put aside is taken up
by replaying its answers, and no environment is ever saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from baltoro.chat.messages import Message, Tool
from baltoro.chat.parser import Folded
from baltoro.train import rewards
from baltoro.train.rewards import PARTIAL, Wanted
from baltoro.train.synthesis.sessions import Session
from baltoro.train.synthesis.simulator import Faults, Simulator

MOST_CALLS = 4  # turns with calls that an errand may take


@dataclass(frozen=True, slots=True)
class Prompt:
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """What follows an answer: more messages, or the end with its reward."""

    messages: tuple[Message, ...] = ()
    reward: float | None = None  # 0 to 1; None: the episode goes on behind `messages`


class Environment(Protocol):
    def reset(self) -> Prompt:
        """Begin, or begin again."""
        ...

    def step(self, answer: Folded) -> Turn: ...


class Question:
    """One prompt, one answer."""

    def __init__(self, prompt: Prompt, wanted: Wanted) -> None:
        self._prompt, self._wanted = prompt, wanted

    def reset(self) -> Prompt:
        return self._prompt

    def step(self, answer: Folded) -> Turn:
        return Turn(reward=rewards.reward(self._wanted, answer))


class Errands:
    """A session in the simulated world: calls are executed, and when the assistant speaks, the next request comes.

    Right is who leaves the world as it should be and says what was asked for; the way there is free.
    """

    def __init__(self, session: Session, *, faults: Faults | None = None, seed: int | str = 0) -> None:
        self._session, self._faults, self._seed = session, faults, seed
        self._begin()

    def _begin(self) -> None:
        self._world = Simulator(self._session.state, self._session.operations, faults=self._faults, seed=self._seed)
        self._said: list[float] = []  # of every errand so far, what its answer mentioned
        self._calls = 0  # turns with calls, in this errand

    def reset(self) -> Prompt:
        self._begin()
        return Prompt((_user(self._session.errands[0].request),), self._session.tools)

    def step(self, answer: Folded) -> Turn:
        if answer.calls and not answer.incomplete and self._calls < MOST_CALLS:
            self._calls += 1
            return Turn(tuple(_result(call.id, self._world.call(call).content) for call in answer.calls))
        if answer.calls or answer.incomplete or not (answer.content or "").strip():
            return self._end()
        errand = self._session.errands[len(self._said)]
        self._said.append(rewards.mentions(errand.mentions, answer.content or "") if errand.mentions else 1.0)
        if len(self._said) == len(self._session.errands):
            return self._end()
        self._calls = 0
        return Turn((_user(self._session.errands[len(self._said)].request),))

    def _end(self) -> Turn:
        state = rewards.same_state(self._session.wanted, self._world.state)
        said = sum(self._said) / len(self._session.errands)
        return Turn(reward=1.0 if state == said == 1.0 else PARTIAL * (state + said) / 2)


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _result(call: str, content: str) -> Message:
    return Message(role="tool", content=content, tool_call_id=call)
