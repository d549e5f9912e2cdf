"""Tokens on their way from an engine's thread to an event loop: none is lost, none changes places."""

from __future__ import annotations

import asyncio
import threading

import pytest

from baltoro.engine.engine import Engine
from baltoro.engine.request import FinishReason, Step
from baltoro.mailbox import Mailbox
from tests.engine.fake import HashModel, engine_config, expected, request


def test_whatever_is_delivered_when_each_queue_gets_its_items_in_order():
    async def main() -> None:
        mail = Mailbox[int](asyncio.get_running_loop())
        queues = [asyncio.Queue[int]() for _ in range(3)]

        def send() -> None:
            for item in range(300):
                mail.put(queues[item % 3], item)
                if item % 7 == 0:
                    mail.deliver()
            mail.deliver()

        sender = threading.Thread(target=send)
        sender.start()
        for number, queue in enumerate(queues):
            assert [await queue.get() for _ in range(100)] == list(range(number, 300, 3))
        sender.join()
        assert all(queue.empty() for queue in queues)

    asyncio.run(main())


def test_a_loop_that_is_gone_is_an_error_for_who_sends():
    loop = asyncio.new_event_loop()
    mail = Mailbox[int](loop)
    queue = asyncio.Queue[int]()
    loop.close()
    with pytest.raises(RuntimeError, match="nobody reads"):
        mail.put(queue, 1)


def test_the_engine_says_when_tokens_are_to_be_handed_over_and_none_is_left_behind():
    """Requests that share `told` hear it once a step, and always after the last of their tokens."""
    waiting: list[tuple[int, Step]] = []
    handed: list[tuple[int, Step]] = []
    calls: list[int] = []
    over = threading.Event()

    def told() -> None:
        calls.append(len(waiting))
        handed.extend(waiting)
        waiting.clear()
        if sum(step.finish is not None for _, step in handed) == 3:
            over.set()

    prompts, begin = ([1, 2, 3], [4], [5, 6]), threading.Event()
    asked = [request(prompt)[0] for prompt in prompts]
    for each in asked:
        each.sink = lambda step, first=each.prompt[0]: waiting.append((first, step))
        each.told = told
    with Engine(HashModel(before=lambda _: begin.wait()), engine_config()) as engine:
        for each in asked:
            engine.submit(each)
        begin.set()
        assert over.wait(30)
    assert not waiting
    for each in asked:
        said = [step.token for first, step in handed if first == each.prompt[0]]
        assert said == expected(each.prompt, each.sampling)
    assert max(calls) >= 2, "several tokens at once"


def test_a_told_that_fails_ends_nobody(caplog: pytest.LogCaptureFixture):
    def told() -> None:
        raise RuntimeError("the loop has gone")

    asked, heard = request([1, 2])
    asked.told = told
    with Engine(HashModel(), engine_config()) as engine:
        engine.submit(asked)
        assert heard.wait().finish is FinishReason.LENGTH
    assert "could not be handed over" in caplog.text
