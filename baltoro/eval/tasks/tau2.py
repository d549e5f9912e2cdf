"""tau2-bench's retail domain (sierra-research/tau2-bench, MIT): an agent serves a user whom another model plays.

Right is a conversation that leaves the shop's database as the task's own calls leave it. Tasks that ask for more of
what was said (`nl_assertions`, which a judge reads in the original) are a kind of their own: here only their database
is judged.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from baltoro.eval.code import Runner
from baltoro.eval.document import at, listed, text_at
from baltoro.eval.endpoint import Reply
from baltoro.eval.score import Score
from baltoro.eval.task import Item, Said, Talk, Task, read, verdict
from baltoro.eval.tasks.functions import arguments_of
from baltoro.eval.tasks.retail import Shop

Json = Any
MOST_TURNS = 100  # of agent and user together, the original's bound
OVER = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")
_AGENT = """You are a customer service agent. Help the user according to the policy below. In each turn either call \
functions or write to the user, never both.

"""
_USER = """You play a user who writes to a customer service agent. Write the user's messages alone, one at a time, \
short and natural. Say only what the scenario has, and only when it is called for; make nothing up. When the aim \
is reached write ###STOP### alone; when you are handed to a human, ###TRANSFER###; when the scenario has not what is \
needed to go on, ###OUT-OF-SCOPE###.

"""
_GREETING = "Hi! How can I help you today?"


class Database:
    """Read once for all tasks; in a protocol's hash it is its digest."""

    def __init__(self, path: Path) -> None:
        packed = path.with_name(path.name + ".gz")
        self.text = gzip.decompress(packed.read_bytes()).decode() if packed.is_file() else read(path)

    def __repr__(self) -> str:
        return sha256(self.text.encode()).hexdigest()

    def shop(self) -> Shop:
        return Shop(json.loads(self.text))


def _items(folder: Path) -> list[Item]:
    database = Database(folder / "db.json")
    tools, policy = json.loads(read(folder / "tools.json")), read(folder / "policy.md")
    items: list[Item] = []
    for row in json.loads(read(folder / "tasks.json")):
        criteria = row["evaluation_criteria"]
        scenario = "\n".join(f"{name}: {text}" for name, text in row["user_scenario"]["instructions"].items() if text)
        persona = row["user_scenario"].get("persona")
        items.append(
            Item(
                id=f"tau2_retail_{row['id']}",
                kind="database alone of more" if criteria.get("nl_assertions") else "retail",
                body={"messages": [{"role": "system", "content": _AGENT + policy}], "tools": tools},
                truth={
                    "database": database,
                    "actions": criteria.get("actions") or [],
                    "user": _USER + scenario + (f"\npersona: {persona}" if persona else ""),
                },
            )
        )
    return items


async def _play(item: Item, agent: Talk, user: Talk) -> Reply:
    """The agent's side as one reply: all its texts, all its calls in their order, the tokens of both."""
    shop: Shop = item.truth["database"].shop()
    messages = [*item.body["messages"], {"role": "assistant", "content": _GREETING}]
    heard: list[Json] = [{"role": "system", "content": item.truth["user"]}, {"role": "user", "content": _GREETING}]
    replies: list[Reply] = []
    calls: list[Json] = []
    users_turn, finish = True, "length"
    for _ in range(MOST_TURNS):
        reply = await (user({"messages": heard}) if users_turn else agent({**item.body, "messages": messages}))
        if reply.status != 200:
            return reply
        replies.append(reply)
        text, made = (
            text_at(reply.body, "choices", 0, "message", "content"),
            listed(reply.body, "choices", 0, "message", "tool_calls"),
        )
        if users_turn:
            if any(mark in text for mark in OVER):
                finish = "stop"
                break
            messages.append({"role": "user", "content": text})
            heard.append({"role": "assistant", "content": text})
            users_turn = False
        elif made:
            messages.append({"role": "assistant", "content": text, "tool_calls": made})
            calls += made
            for call in made:
                name, given = text_at(call, "function", "name"), arguments_of(text_at(call, "function", "arguments"))
                result = {"role": "tool", "tool_call_id": at(call, "id"), "content": shop.call(name, given)}
                messages.append(result)
        else:
            messages.append({"role": "assistant", "content": text})
            heard.append({"role": "user", "content": text})
            users_turn = True
    said = "\n\n".join(
        text for turn in messages if at(turn, "role") == "assistant" and (text := text_at(turn, "content"))
    )
    message = {"role": "assistant", "content": said, "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return Reply(200, {"choices": [choice], "usage": _usage(replies)}, "", sum(reply.seconds for reply in replies))


def _usage(replies: list[Reply]) -> Mapping[str, int]:
    names = ("prompt_tokens", "completion_tokens")
    return {name: sum(found for r in replies if isinstance(found := at(r.usage, name), int)) for name in names}


def _score(item: Item, said: Said, _: Runner) -> Score:
    if said.finish != "stop":
        return verdict(item, "the conversation did not end")
    wanted, found = item.truth["database"].shop(), item.truth["database"].shop()
    for action in item.truth["actions"]:
        wanted.call(action["name"], action["arguments"])
    for call in said.calls:
        found.call(call.name, arguments_of(call.arguments))
    same = wanted.digest() == found.digest()
    return verdict(item, "" if same else f"another database after {[call.name for call in said.calls]}")


TAU2_RETAIL = Task(
    name="tau2-retail", benchmark="Tau2 retail", data="toolcalling/tau2/retail", items=_items, score=_score, play=_play
)
