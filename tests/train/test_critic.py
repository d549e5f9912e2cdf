"""The critic: an endpoint that prefers longer answers, one that is rude, and one that is not there."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from baltoro.chat.messages import Message
from baltoro.errors import RecipeError
from baltoro.train import critic, rl
from baltoro.train.critic import Critic
from baltoro.train.rl_recipe import CriticConfig, TaskSource
from baltoro.train.rollouts import Group
from tests.train import tiny_rl

Reply = tuple[int, Any]


@contextmanager
def endpoint(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its URL, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            status, answer = reply(body)
            sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(text: str) -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def longer(body: dict[str, Any]) -> Reply:
    question = body["messages"][1]["content"]
    a, b = (json.loads(found)["content"] for found in re.findall(r"Answer [AB]:\n(.*)\n", question))
    return said("Neither is long. TIE" if len(a) == len(b) else f"The longer one.\n{'A' if len(a) > len(b) else 'B'}")


def group(tmp_path: Path, texts: list[str | None]) -> Group:
    """Its rollouts have said these; None: they were cut."""
    (made,) = tiny_rl.groups(tiny_rl.recipe(tmp_path, samples=len(texts)), 1)
    for rollout, text in zip(made.rollouts, texts, strict=True):
        rollout.transcript = [Message(role="assistant", content=text)]
        rollout.cut = text is None
        rollout.reward = None if text is None else 0.0
    return made


def config(url: str, **changes: Any) -> CriticConfig:
    return CriticConfig(**({"url": url, "model": "judge", "weight": 0.5} | changes))


def test_answers_are_ranked_by_the_comparisons_they_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with (
        endpoint(longer) as (url, asked),
        Critic(config(url, key_variable="JUDGE_KEY", rubrics=("Be kind.",))) as judge,
    ):
        assert judge.rank(group(tmp_path, ["bb", "dddd", "a", "ccc"])) == [1 / 3, 1.0, 0.0, 2 / 3]
        assert judge.rank(group(tmp_path, ["aa", "bb", "c"])) == [0.75, 0.75, 0.0]
        assert judge.rank(group(tmp_path, ["a", None, None])) == [1.0, 0.25, 0.25]
    assert len(asked) == 6 + 3 + 0  # nobody asks about what was cut
    assert {(each["path"], each["key"], each["model"]) for each in asked} == {
        ("/v1/chat/completions", "Bearer secret", "judge")
    }
    rubrics = asked[0]["messages"][0]["content"]
    assert all(rubric in rubrics for rubric in (*critic.CORE, *critic.PRESCRIPTIVE, "Be kind."))


def test_each_answer_stands_first_about_as_often_as_second(tmp_path: Path) -> None:
    """So a judge that always takes the first one ranks nobody far above another."""
    with endpoint(lambda _: said("A")) as (url, _), Critic(config(url)) as judge:
        shares = judge.rank(group(tmp_path, ["x"] * 7))
    assert sum(shares) == pytest.approx(3.5)
    assert max(shares) - min(shares) <= 1 / 6 + 1e-9


def test_a_verdict_that_cannot_be_read_is_a_tie(tmp_path: Path) -> None:
    with endpoint(lambda _: said("Both are fine, I believe.")) as (url, _), Critic(config(url)) as judge:
        assert judge.rank(group(tmp_path, ["x", "y"])) == [0.5, 0.5]
        assert [judge.counts(), judge.counts()] == [(1, 1), (0, 0)]


def test_a_busy_critic_is_asked_again_and_one_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(critic, "WAIT_S", 0.0)
    replies = iter([(503, {}), (429, {}), said("A")])
    with endpoint(lambda _: next(replies)) as (url, asked), Critic(config(url, parallel=1)) as judge:
        assert sorted(judge.rank(group(tmp_path, ["x", "y"]))) == [0.0, 1.0]
        assert len(asked) == 3
    for reply, told, attempts in (
        ((500, {}), "status 500", 4),
        ((401, {}), "status 401", 1),
        ((200, b"x"), "no OpenAI", 1),
    ):
        with (
            endpoint(lambda _, reply=reply: reply) as (url, asked),
            Critic(config(url)) as judge,
            pytest.raises(RecipeError, match=told),
        ):
            judge.rank(group(tmp_path, ["x", "y"]))
        assert len(asked) == attempts
    with Critic(config(url)) as judge, pytest.raises(RecipeError, match="did not answer"):  # it has closed
        judge.rank(group(tmp_path, ["x", "y"]))
    with pytest.raises(RecipeError, match="NO_SUCH_KEY, which is not set"):
        Critic(config(url, key_variable="NO_SUCH_KEY"))


def test_its_share_is_added_to_the_reward_of_the_kinds_that_it_judges(tmp_path: Path) -> None:
    made = group(tmp_path, ["bb", "a", None])
    with endpoint(longer) as (url, _):
        for kinds, expected in (((), [0.0 + 0.5, 0.0 + 0.25, -0.5]), (("none",), [0.0, 0.0, -0.5])):
            tasks = (TaskSource(kind="single"), TaskSource(kind="none"))
            recipe = tiny_rl.recipe(tmp_path, critic=config(url, kinds=kinds), tasks=tasks)
            assert recipe.critic is not None
            with Critic(recipe.critic) as judge:
                assert rl.rewards_of(made, recipe, judge) == expected
