"""Groups of rollouts by number: which task each of them asks. A function of the recipe and the number alone.

A file of one's own has one task a line, as JSON:

    {"messages": [{"role": "user", "content": "..."}], "tools": [...],     tools as clients declare them
     "wanted": {"calls": [{"name": ..., "arguments": {...}}], "text": ..., "mentions": [...],
                "number": 4, "tolerance": 0.01, "instructions": {"max_words": 20, "contains": "harbour"}}}

`wanted` may be {}: then the assistant must answer in words, without a call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from baltoro.chat.messages import Message, Tool, ToolCall
from baltoro.errors import BaltoroError, RecipeError
from baltoro.train.environment import Environment, Errands, Prompt, Question
from baltoro.train.instructions import Instruction
from baltoro.train.rewards import Wanted
from baltoro.train.rl_recipe import RLRecipe, TaskSource
from baltoro.train.synthesis.dialogues import Dialogue, generate
from baltoro.train.synthesis.sessions import make_session
from baltoro.train.synthesis.simulator import Faults

Make = Callable[[int], Environment]  # group's number -> a fresh environment


@dataclass(frozen=True, slots=True)
class Task:
    """What one group of rollouts is about."""

    kind: str
    answer_tokens: int  # budget of an episode
    make: Callable[[], Environment]


class Tasks:
    def __init__(self, recipe: RLRecipe) -> None:
        """Raises RecipeError where a file of tasks cannot be read."""
        self._seed = recipe.task_seed
        self._sources = recipe.tasks
        self._weights = [source.weight for source in recipe.tasks]
        self._makers = [_maker(source, recipe.task_seed) for source in recipe.tasks]

    def task(self, group: int) -> Task:
        chosen = Random(f"{self._seed}/task/{group}").choices(range(len(self._sources)), self._weights)[0]
        source = self._sources[chosen]
        return Task(source.kind, source.answer_tokens, partial(self._makers[chosen], group))


def _maker(source: TaskSource, seed: int) -> Make:
    if source.kind == "session":
        faults = Faults(unavailable=source.unavailable, partial=source.partial)
        return lambda group: Errands(make_session(seed, group), faults=faults, seed=f"{seed}/{group}")
    if source.kind == "file":
        questions = _read(Path(source.file))
        return lambda group: questions[group % len(questions)]
    return lambda group: _question(source.kind, seed, group)


def _question(kind: str, seed: int, group: int) -> Question:
    """The generator's dialogue of this number, up to the turn that is asked for; words are of the training split."""
    for dialogue in generate(seed, "train", weights={kind: 1.0}, start=group):
        cut = _cut(dialogue, Random(f"{seed}/cut/{group}"))
        if cut is not None:
            break
    else:
        raise AssertionError("the generator never ends")
    last = cut.messages[-1]
    calls, text, mentions = last.tool_calls, None, ()
    if not calls and kind == "recite":
        text = str(last.content)
    elif not calls:
        mentions = cut.mentions
    return Question(Prompt(cut.messages[:-1], cut.tools), Wanted(calls=calls, text=text, mentions=mentions))


def _cut(dialogue: Dialogue, r: Random) -> Dialogue | None:
    """A conversation ends at one of its later calls; None where it has none."""
    if dialogue.kind != "conversation":
        return dialogue
    turns = [index for index, message in enumerate(dialogue.messages) if message.tool_calls]
    if len(turns) < 2:
        return None
    return Dialogue(dialogue.kind, dialogue.messages[: r.choice(turns[1:]) + 1], dialogue.tools)


def _read(path: Path) -> list[Question]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read: {error}", hint="paths are read from the working directory"
        ) from error
    questions: list[Question] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            questions.append(_written(json.loads(line)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise RecipeError(
                f"{path}:{number} is no task: {said}", hint="baltoro/train/tasks.py has the form"
            ) from error
        except BaltoroError as error:
            raise RecipeError(f"{path}:{number}: {error.message}", hint=error.hint) from error
    if not questions:
        raise RecipeError(f"{path} has no task", hint="one a line, as JSON; baltoro/train/tasks.py has the form")
    return questions


_WANTED = {"calls", "text", "mentions", "number", "tolerance", "instructions"}


def _written(row: Mapping[str, Any]) -> Question:
    wanted: dict[str, Any] = dict(row["wanted"])
    if strange := {*row} - {"messages", "tools", "wanted"} | wanted.keys() - _WANTED:
        raise ValueError(f"{', '.join(sorted(strange))} unknown")
    messages = tuple(_message(message) for message in row["messages"])
    if not messages or messages[-1].role == "assistant":
        raise ValueError("its last message must be what the assistant answers")
    tools = tuple(
        Tool(name=each["function"]["name"], parameters=each["function"].get("parameters", {}), declaration=each)
        for each in row.get("tools", ())
    )
    calls = tuple(
        ToolCall(id="", name=call["name"], arguments=dict(call["arguments"])) for call in wanted.get("calls", ())
    )
    instructions = tuple(Instruction(name, value) for name, value in wanted.get("instructions", {}).items())
    number = wanted.get("number")
    return Question(
        Prompt(messages, tools),
        Wanted(
            calls=calls,
            text=wanted.get("text"),
            mentions=tuple(map(str, wanted.get("mentions", ()))),
            number=None if number is None else float(number),
            tolerance=float(wanted.get("tolerance", 0.0)),
            instructions=instructions,
        ),
    )


def _message(row: dict[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in row.pop("tool_calls", ()))
    return Message(**row, tool_calls=calls)
