"""Text in, text out: a ChatRequest becomes token ids and a constraint, the engine's tokens become Deltas.

    messages -> canonical ids -> template -> ids ─┐
    tools    -> grammar -> constraint ────────────┴─> Engine.submit ─> tokens -> parser -> stop strings -> Deltas

A request that cannot be honoured fails when it is made, not when its first delta is read, so that a
server can still answer 400. Closing an iterator cancels its request, even one that nobody has read.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar, Unpack, cast

from baltoro import choices, start
from baltoro.answer import Admit, Answer, ChatReader, CompletionReader, Reader
from baltoro.chat.call_ids import canonicalize
from baltoro.chat.compiler import Loosened
from baltoro.chat.grammar import Grammar
from baltoro.chat.messages import ChatRequest, CompletionRequest, Delta, Finished, Json, Likelihoods, Piece, Wishes
from baltoro.chat.parser import Parser, fold
from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.engine.request import Constraint, Request, Step
from baltoro.errors import ContextError, EngineError, RequestError
from baltoro.mailbox import Mailbox
from baltoro.start import Settings

if TYPE_CHECKING:
    from baltoro.engine.verbs import AnyEngine

Item = TypeVar("Item")
Asked = TypeVar("Asked", bound=Wishes)
_Make = Callable[[Callable[[Step], None], Callable[[], None] | None], Request]  # sink, told -> request


class ChatModel(Protocol):
    """What doors, agents and evaluations need of a model."""

    name: str

    @property
    def max_context(self) -> int: ...  # tokens of prompt and answer

    def stream(self, request: ChatRequest) -> Generator[Delta]: ...

    def astream(self, request: ChatRequest) -> AsyncGenerator[Delta]: ...

    def astream_choices(
        self, request: ChatRequest, n: int, admit: Admit | None = None
    ) -> list[AsyncGenerator[Delta]]: ...

    def complete(self, request: ChatRequest) -> Answer: ...

    def stream_completion(self, request: CompletionRequest) -> Generator[Piece]: ...

    def astream_completions(
        self, request: CompletionRequest, n: int, admit: Admit | None = None
    ) -> list[AsyncGenerator[Piece]]: ...

    def loosened(self, request: ChatRequest) -> list[Loosened]: ...  # see LLM

    def encode(self, text: str) -> list[int]: ...  # as a completion reads its prompt

    def count_tokens(self, request: ChatRequest) -> int: ...  # of its prompt, template and tools included

    def unhealthy(self) -> str | None: ...  # why it does not answer; None while it does

    def statistics(self) -> dict[str, Json]: ...  # what `GET /stats` says of engine and expert store

    def close(self) -> None: ...


class LLM:
    """One model behind one engine. Every method may be called from any thread."""

    def __init__(
        self,
        engine: AnyEngine,
        tokenizer: Tokenizer,
        name: str,
        *,
        request_timeout_s: float | None = None,
        loose_schemas: bool = False,
        draw_seeds: bool = False,
    ) -> None:
        """request_timeout_s: what each request has from here to its end; then it ends with a DeadlineError.

        loose_schemas: a keyword that no grammar enforces is dropped, see `loosened`; else its request is refused.
        draw_seeds: a request without a seed gets one that can be read from its answer's `wishes`, to be repeated.
        """
        start.check_vocabulary(tokenizer, engine.vocab_size)
        self.engine = engine
        self.tokenizer = tokenizer
        self.name = name
        self._request_timeout_s = request_timeout_s
        self._draw_seeds = draw_seeds
        self._grammar = Grammar(tokenizer, loose=loose_schemas)
        self._mail: Mailbox[Step] | None = None  # of the event loop that read last

    @classmethod
    def open(
        cls,
        model: str | Path = "nano",
        *,
        request_timeout_s: float | None = None,
        loose_schemas: bool = False,
        draw_seeds: bool = False,
        **settings: Unpack[Settings],
    ) -> Self:
        """A checkpoint directory or a preset, loaded and running."""
        engine, tokenizer = start.engine(model, **settings)
        return cls(
            engine,
            tokenizer,
            str(model),
            request_timeout_s=request_timeout_s,
            loose_schemas=loose_schemas,
            draw_seeds=draw_seeds,
        )

    @classmethod
    def connect(
        cls,
        model: str | Path,
        upstreams: Sequence[str],
        *,
        max_context: int | None = None,
        key: str | None = None,
        loose_schemas: bool = False,
    ) -> Self:
        """A model that runs behind `upstreams`, URLs of vLLM, SGLang or llama-server; language and grammar are here.

        `model`: its directory, of which config.json and tiktoken.model are read, never a weight.
        """
        from baltoro.config import ModelConfig, resolve
        from baltoro.engine.remote import RemoteEngine

        directory = resolve(model)
        config = ModelConfig.open(directory)
        tokenizer = Tokenizer.open(directory if directory.is_dir() else directory.parent)
        start.check_vocabulary(tokenizer, config.vocab_size)
        longest = max_context or config.max_position_embeddings
        engine = RemoteEngine(upstreams, vocab_size=config.vocab_size, max_context=longest, key=key)
        if max_context is not None and engine.max_context < max_context:
            engine.stop()
            raise EngineError(
                f"max_context is {max_context}, expected at most {engine.max_context}, which the upstreams allow",
                hint="start them with a larger one",
            )
        return cls(engine, tokenizer, str(model), loose_schemas=loose_schemas)

    @property
    def max_context(self) -> int:
        return self.engine.max_context

    def unhealthy(self) -> str | None:
        """Why the engine does not answer; None while it does."""
        return self.engine.fault

    def statistics(self) -> dict[str, Json]:
        """Since the start. `store` is None where every expert is in memory."""
        engine = asdict(self.engine.statistics()) | self.engine.observed()
        store = self.engine.store
        used: dict[str, Json] | None = None
        if store is not None:
            used = {"slots": store.slots, "budget_bytes": store.budget_bytes, **asdict(store.statistics)}
        return {"max_context": self.max_context, "engine": engine, "store": used}

    def close(self) -> None:
        """Requests under way end with an error; a server drains before it calls this."""
        self.engine.stop(drain=False)

    def stream(self, request: ChatRequest) -> Generator[Delta]:
        return self._run(*self._chat(request, 1)[0])

    def astream(self, request: ChatRequest) -> AsyncGenerator[Delta]:
        """To be called on the event loop that reads it."""
        return self.astream_choices(request, 1)[0]

    def astream_choices(self, request: ChatRequest, n: int, admit: Admit | None = None) -> list[AsyncGenerator[Delta]]:
        """`n` answers, each with its own seed, grammar and calls. To be called on the event loop that reads them."""
        return self._admitted(self._chat(request, n), admit)

    def complete(self, request: ChatRequest) -> Answer:
        make, reader = self._chat(request, 1)[0]
        deltas = list(self._run(make, reader))
        last = deltas[-1]
        assert isinstance(last, Finished)
        content, calls, incomplete = fold(deltas, reader.parser.malformed)
        return Answer(
            content=content,
            tool_calls=calls,
            incomplete=incomplete,
            reason=last.reason,
            usage=last.usage,
            prompt_ids=tuple(reader.prompt),
            token_ids=tuple(reader.tokens),
            logprobs=tuple(delta.chosen.logprob for delta in deltas if isinstance(delta, Likelihoods)),
        )

    def stream_completion(self, request: CompletionRequest) -> Generator[Piece]:
        return self._run(*self._completion(request, 1)[0])

    def astream_completions(
        self, request: CompletionRequest, n: int, admit: Admit | None = None
    ) -> list[AsyncGenerator[Piece]]:
        """`n` of them, each with its own seed. To be called on the event loop that reads them."""
        return self._admitted(self._completion(request, n), admit)

    def loosened(self, request: ChatRequest) -> list[Loosened]:
        """What of its schemas is not enforced; [] unless `loose_schemas`.

        This compiles them, some milliseconds each, and what is compiled is kept: a door asks here, off its event loop,
        before it asks for the answer.
        """
        return self._grammar.loosened(request.tools, request.answer_format)

    def encode(self, text: str) -> list[int]:
        """The ids of a completion's prompt, in which control tokens may be spelled out."""
        return self.tokenizer.encode_with_specials(text)

    def count_tokens(self, request: ChatRequest) -> int:
        """Of the prompt that the request's answer would begin from."""
        return len(self._prompt(request)[0])

    # ── request -> ids ───────────────────────────────────────────────────────────────────────────

    def _prompt(self, request: ChatRequest) -> tuple[list[int], int]:
        """Its ids, and the index of the next call."""
        if not request.messages:
            raise RequestError("messages is empty, expected at least one message", param="messages")
        messages, next_index = canonicalize(request.messages)
        return render(messages, request.tools).ids(self.tokenizer), next_index

    def _chat(self, request: ChatRequest, n: int) -> list[tuple[_Make, ChatReader]]:
        prompt, next_index = self._prompt(request)
        wanted = request.answer_format
        if wanted is not None and request.messages[-1].partial:
            raise RequestError(
                f"{wanted.name} asks for JSON from the first character on, and the last of messages is partial:"
                " the answer has begun with it",
                hint="leave one of them out",
                param=wanted.param,
            )
        answers: list[tuple[_Make, ChatReader]] = []
        for wishes in self._split(self._clipped(request, self.max_context - len(prompt)), n):
            constraint = self._grammar.compile(
                request.tools,
                request.tool_choice,
                next_index=next_index,
                parallel=request.parallel_tool_calls,
                endless=request.ignore_eos,
                answer_format=request.answer_format,
            )
            parser = Parser(self.tokenizer, next_index=next_index, endless=request.ignore_eos)
            reader = ChatReader(prompt, wishes, parser, self.tokenizer)
            answers.append((self._make(prompt, wishes, constraint), reader))
        return answers

    def _clipped(self, request: ChatRequest, room: int) -> ChatRequest:
        """room: tokens that the context leaves"""
        if not request.clip_max_tokens or request.max_tokens is None:
            return request
        return replace(request, max_tokens=min(request.max_tokens, room) if room > 0 else None)

    def _completion(self, request: CompletionRequest, n: int) -> list[tuple[_Make, CompletionReader]]:
        given = request.prompt
        prompt = self.encode(given) if isinstance(given, str) else list(given)
        return [
            (self._make(prompt, wishes, None), CompletionReader(prompt, wishes, self.tokenizer))
            for wishes in self._split(request, n)
        ]

    def _split(self, request: Asked, n: int) -> list[Asked]:
        if self._draw_seeds and request.seed is None:
            request = replace(request, seed=secrets.randbits(63))
        return choices.split(request, n)

    def _make(self, prompt: list[int], wishes: ChatRequest | CompletionRequest, constraint: Constraint | None) -> _Make:
        room = self.max_context - len(prompt)
        if room < max(1, wishes.max_tokens or 1):
            wanted = "" if wishes.max_tokens is None else f" and max_tokens is {wishes.max_tokens}"
            raise ContextError(
                f"the prompt has {len(prompt)} tokens{wanted}, but the context holds {self.max_context} in all",
                hint="shorten the conversation, or leave max_tokens out" if wanted else "shorten the conversation",
                param="max_tokens" if room > 0 else "messages" if isinstance(wishes, ChatRequest) else "prompt",
                code="context_length_exceeded",
                sizes=(len(prompt), self.max_context),
            )
        echo = isinstance(wishes, CompletionRequest) and wishes.echo
        max_tokens = 1 if echo and wishes.max_tokens == 0 else wishes.max_tokens  # the prompt's last step gives one
        sampling = choices.sampling(wishes, room if max_tokens is None else max_tokens, self.tokenizer.stop_ids)
        return lambda sink, told: Request(
            prompt=prompt,
            sampling=sampling,
            sink=sink,
            told=told,
            constraint=constraint,
            priority=wishes.priority,
            deadline=None if self._request_timeout_s is None else time.monotonic() + self._request_timeout_s,
            prompt_logprobs=wishes.logprobs if echo else None,
        )

    # ── tokens -> items ──────────────────────────────────────────────────────────────────────────

    def _run(self, make: _Make, reader: Reader[Item]) -> Generator[Item]:
        steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
        request = make(steps.put, None)
        self.engine.submit(request)

        def read() -> Generator[Item]:
            try:
                yield cast("Item", None)  # for the `next` below
                while not reader.over:
                    yield from reader.read(steps.get())
            finally:
                self.engine.cancel(request)  # one that has ended is left alone

        items = read()
        next(items)  # now it is inside its `try`, and closing it cancels even if nobody has read
        return items

    def _admitted(
        self, answers: Sequence[tuple[_Make, Reader[Item]]], admit: Admit | None
    ) -> list[AsyncGenerator[Item]]:
        if admit is not None:
            admit([reader for _, reader in answers])
        return [self._arun(*each) for each in answers]

    def _arun(self, make: _Make, reader: Reader[Item]) -> AsyncGenerator[Item]:
        steps: asyncio.Queue[Step] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        mail = self._mail
        if mail is None or mail.loop is not loop:
            mail = self._mail = Mailbox(loop)
        request = make(partial(mail.put, steps), mail.deliver)
        self.engine.submit(request)
        reader.marks = request.marks

        async def read() -> AsyncGenerator[Item]:
            try:
                yield cast("Item", None)
                while not reader.over:
                    for item in reader.read(await steps.get()):
                        yield item
            finally:
                self.engine.cancel(request)

        items = read()
        with suppress(StopIteration):  # how a coroutine says that it has yielded
            items.asend(None).send(None)  # as `next` above: it awaits nothing before its first yield
        return items
