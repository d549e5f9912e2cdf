"""Text in, text out: a ChatRequest becomes token ids and a constraint, the engine's tokens become Deltas.

    messages -> canonical ids -> template -> ids ─┐
    tools    -> grammar -> constraint ────────────┴─> Engine.submit ─> tokens -> parser -> stop strings -> Deltas

A request that cannot be honoured fails when it is made, not when its first delta is read, so that a
server can still answer 400. Closing an iterator cancels its request, even one that nobody has read.
"""

from __future__ import annotations

import asyncio
import queue
import re
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar, cast

from baltoro import choices
from baltoro.answer import Answer, ChatReader, CompletionReader, Reader
from baltoro.chat.call_ids import canonicalize
from baltoro.chat.grammar import Grammar
from baltoro.chat.messages import (
    CallEnded,
    ChatRequest,
    CompletionRequest,
    Delta,
    Finished,
    Json,
    Message,
    Piece,
    TextDelta,
    TokenDelta,
    Tool,
    ToolCall,
    Usage,
)
from baltoro.chat.parser import Parser, TextParser, fold
from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.engine.request import Constraint, Request, Step
from baltoro.errors import CheckpointError, ContextError, EngineError, RequestError, TokenizerError

if TYPE_CHECKING:
    from baltoro.engine.verbs import AnyEngine
    from baltoro.kernels.formats import Format

Item = TypeVar("Item")
_Make = Callable[[Callable[[Step], None]], Request]  # sink -> request

SMALL_PARAMETERS = 10**9  # below this float32 weights cost little and are exact
MAX_RUNNING = 32  # requests decoded together
CACHE_BYTES = 2**30  # unless the caller says otherwise, or one sequence of `max_context` needs more
PREFIX_DISK_BYTES = 20 * 2**30  # of prefixes kept on disk, where a directory for them is named
PAGE_SLACK = 64  # tokens: a sequence's last page is partly empty


class ChatModel(Protocol):
    """What doors, agents and evaluations need of a model."""

    name: str

    @property
    def max_context(self) -> int: ...  # tokens of prompt and answer

    def stream(self, request: ChatRequest) -> Generator[Delta]: ...

    def astream(self, request: ChatRequest) -> AsyncGenerator[Delta]: ...

    def astream_choices(self, request: ChatRequest, n: int) -> list[AsyncGenerator[Delta]]: ...

    def complete(self, request: ChatRequest) -> Answer: ...

    def stream_completion(self, request: CompletionRequest) -> Generator[Piece]: ...

    def astream_completions(self, request: CompletionRequest, n: int) -> list[AsyncGenerator[Piece]]: ...

    def encode(self, text: str) -> list[int]: ...  # as a completion reads its prompt

    def unhealthy(self) -> str | None: ...  # why it does not answer; None while it does

    def statistics(self) -> dict[str, Json]: ...  # what `GET /stats` says of engine and expert store

    def close(self) -> None: ...


class LLM:
    """One model behind one engine. Every method may be called from any thread."""

    def __init__(self, engine: AnyEngine, tokenizer: Tokenizer, name: str) -> None:
        check_vocabulary(tokenizer, engine.vocab_size)
        self.engine = engine
        self.tokenizer = tokenizer
        self.name = name
        self._grammar = Grammar(tokenizer)

    @classmethod
    def open(
        cls,
        model: str | Path = "nano",
        *,
        max_context: int | None = None,
        max_running: int | None = None,
        cache_bytes: int | None = None,
        dtype: str | None = None,
        format: Format | None = None,
        threads: int | None = None,
        expert_memory: int | None = None,
        trace: Path | None = None,
        prefix_cache: bool = True,
        prefix_dir: Path | None = None,
        prefix_disk_bytes: int = PREFIX_DISK_BYTES,
    ) -> Self:
        """A checkpoint directory or a preset, loaded and running.

        `dtype`: what the model computes in, float32 or bfloat16. None takes bfloat16 for large models in
        bfloat16 and float32 for all others.
        `format`: what matrices are kept in, see kernels/formats.py. None keeps packed checkpoints and large models in
        block-fp8 as they are, and all others in bf16, where there are native kernels and no `dtype` is asked for; else
        in `dtype`. Packed models cache in bfloat16, others in `dtype`.
        `expert_memory`: bytes for routed experts of a packed checkpoint; the others are read from disk when they are
        wanted. None: all, where they fit into what is free, and else what is left beside everything else.
        `trace`: a new file for which experts are chosen, see weights/trace.py.
        `prefix_cache`: prompts that begin alike are computed once, see engine/prefix.py.
        `prefix_dir`: a directory in which prefixes are kept that memory has no room for, and beyond the end of this
        process; `prefix_disk_bytes` are the most they may take.
        `threads`: CPU threads of this whole process, for torch has one number for all. None: as many as it may use.
        """
        from baltoro import counts
        from baltoro.config import ModelConfig, resolve

        directory = resolve(model)
        if directory.is_file():
            raise CheckpointError(
                f"{model} is a config without weights", hint="name a directory with config.json and safetensors shards"
            )
        import torch  # seconds: after what can be refused at once

        from baltoro.engine.engine import Engine, EngineConfig, page_bytes
        from baltoro.engine.prefix_files import PageShape, PrefixFiles
        from baltoro.kernels import cpus, targets
        from baltoro.model.load import load
        from baltoro.weights import fit, layout
        from baltoro.weights.identity import identity
        from baltoro.weights.trace import Header, Writer

        config = ModelConfig.open(directory)
        tokenizer = Tokenizer.open(directory)
        check_vocabulary(tokenizer, config.vocab_size)
        torch.set_num_threads(min(torch.get_num_threads(), cpus.usable()) if threads is None else threads)
        small = counts.parameters(config) < SMALL_PARAMETERS
        shipped_in_fp8 = config.weight_block_size is not None
        if format is None and not config.packed_format:
            if shipped_in_fp8 and not small:
                format = "fp8"
            elif dtype is None and targets.chosen_target() != "torch" and layout.heads_pack(config):
                format = "bf16"
        if dtype is None:
            dtype = "float32" if small or format or config.packed_format else "bfloat16"
        packed = format or config.packed_format
        cache_dtype = torch.bfloat16 if packed else getattr(torch, dtype)
        running = max_running or MAX_RUNNING
        if cache_bytes is None:
            token_bytes = counts.cache_bytes_per_token(config, value_bytes=cache_dtype.itemsize)
            enough = running * ((max_context or config.max_position_embeddings) + PAGE_SLACK) * token_bytes
            cache_bytes = max(min(enough, CACHE_BYTES), ((max_context or 1) + PAGE_SLACK) * token_bytes)
        if expert_memory is None and config.packed_format and config.n_routed_experts:
            expert_memory = fit.expert_budget(fit.Need.of(config), cache_bytes)
        engine_config = EngineConfig(
            cache_bytes=cache_bytes,
            cache_dtype=cache_dtype,
            max_running=running,
            max_context=max_context,
            prefix_cache=prefix_cache,
        )
        files = None
        if prefix_dir is not None:
            settings = f"{packed} {dtype} {cache_dtype} {engine_config.page_tokens} {targets.chosen_target()}"
            shape = PageShape(
                fingerprint=sha256(identity(directory) + language(tokenizer) + settings.encode()).digest(),
                page_tokens=engine_config.page_tokens,
                page_bytes=page_bytes(config, engine_config),
            )
            files = PrefixFiles(prefix_dir, shape, budget_bytes=prefix_disk_bytes)
        recorder = Writer(trace, Header.of(config, Path(model).name)) if trace else None
        try:
            engine = Engine(
                load(directory, dtype=getattr(torch, dtype), format=format, expert_memory=expert_memory),
                engine_config,
                trace=recorder,
                files=files,
            )
        except BaseException:
            if files is not None:
                files.close()
            if recorder is not None and trace is not None:  # the same command may be given again
                recorder.close()
                trace.unlink()
            raise
        return cls(engine, tokenizer, str(model))

    @classmethod
    def connect(
        cls, model: str | Path, upstreams: Sequence[str], *, max_context: int | None = None, key: str | None = None
    ) -> Self:
        """A model that runs behind `upstreams`, URLs of vLLM, SGLang or llama-server; language and grammar are here.

        `model`: its directory, of which config.json and tiktoken.model are read, never a weight.
        """
        from baltoro.config import ModelConfig, resolve
        from baltoro.engine.remote import RemoteEngine

        directory = resolve(model)
        config = ModelConfig.open(directory)
        tokenizer = Tokenizer.open(directory if directory.is_dir() else directory.parent)
        check_vocabulary(tokenizer, config.vocab_size)
        longest = max_context or config.max_position_embeddings
        engine = RemoteEngine(upstreams, vocab_size=config.vocab_size, max_context=longest, key=key)
        if max_context is not None and engine.max_context < max_context:
            engine.stop()
            raise EngineError(
                f"max_context is {max_context}, expected at most {engine.max_context}, which the upstreams allow",
                hint="start them with a larger one",
            )
        return cls(engine, tokenizer, str(model))

    @property
    def max_context(self) -> int:
        return self.engine.max_context

    def unhealthy(self) -> str | None:
        """Why the engine does not answer; None while it does."""
        return self.engine.fault

    def statistics(self) -> dict[str, Json]:
        """Since the start. `store` is None where every expert is in memory."""
        store = self.engine.store
        used: dict[str, Json] | None = None
        if store is not None:
            used = {"slots": store.slots, "budget_bytes": store.budget_bytes, **asdict(store.statistics)}
        return {"max_context": self.max_context, "engine": asdict(self.engine.statistics()), "store": used}

    def close(self) -> None:
        """Requests under way end with an error; a server drains before it calls this."""
        self.engine.stop(drain=False)

    def stream(self, request: ChatRequest) -> Generator[Delta]:
        return self._run(*self._chat(request, 1)[0])

    def astream(self, request: ChatRequest) -> AsyncGenerator[Delta]:
        """To be called on the event loop that reads it."""
        return self.astream_choices(request, 1)[0]

    def astream_choices(self, request: ChatRequest, n: int) -> list[AsyncGenerator[Delta]]:
        """`n` answers, each with its own seed, grammar and calls. To be called on the event loop that reads them."""
        return [self._arun(*each) for each in self._chat(request, n)]

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
        )

    def stream_completion(self, request: CompletionRequest) -> Generator[Piece]:
        return self._run(*self._completion(request, 1)[0])

    def astream_completions(self, request: CompletionRequest, n: int) -> list[AsyncGenerator[Piece]]:
        """`n` of them, each with its own seed. To be called on the event loop that reads them."""
        return [self._arun(*each) for each in self._completion(request, n)]

    def encode(self, text: str) -> list[int]:
        """The ids of a completion's prompt, in which control tokens may be spelled out."""
        return self.tokenizer.encode_with_specials(text)

    # ── request -> ids ───────────────────────────────────────────────────────────────────────────

    def _chat(self, request: ChatRequest, n: int) -> list[tuple[_Make, ChatReader]]:
        if not request.messages:
            raise RequestError("messages is empty, expected at least one message", param="messages")
        messages, next_index = canonicalize(request.messages)
        prompt = render(messages, request.tools).ids(self.tokenizer)
        answers: list[tuple[_Make, ChatReader]] = []
        for wishes in choices.split(request, n):
            constraint = self._grammar.compile(
                request.tools,
                request.tool_choice,
                next_index=next_index,
                parallel=request.parallel_tool_calls,
                endless=request.ignore_eos,
            )
            parser = Parser(self.tokenizer, next_index=next_index, endless=request.ignore_eos)
            reader = ChatReader(prompt, wishes, parser, self.tokenizer)
            answers.append((self._make(prompt, wishes, constraint), reader))
        return answers

    def _completion(self, request: CompletionRequest, n: int) -> list[tuple[_Make, CompletionReader]]:
        given = request.prompt
        prompt = self.encode(given) if isinstance(given, str) else list(given)
        return [
            (self._make(prompt, wishes, None), CompletionReader(prompt, wishes, self.tokenizer))
            for wishes in choices.split(request, n)
        ]

    def _make(self, prompt: list[int], wishes: ChatRequest | CompletionRequest, constraint: Constraint | None) -> _Make:
        room = self.max_context - len(prompt)
        if room < max(1, wishes.max_tokens or 1):
            wanted = "" if wishes.max_tokens is None else f" and max_tokens is {wishes.max_tokens}"
            raise ContextError(
                f"the prompt has {len(prompt)} tokens{wanted}, but the context holds {self.max_context} in all",
                hint="shorten the conversation, or leave max_tokens out" if wanted else "shorten the conversation",
                param="max_tokens" if room > 0 else "messages" if isinstance(wishes, ChatRequest) else "prompt",
                code="context_length_exceeded",
            )
        echo = isinstance(wishes, CompletionRequest) and wishes.echo
        max_tokens = 1 if echo and wishes.max_tokens == 0 else wishes.max_tokens  # the prompt's last step gives one
        sampling = choices.sampling(wishes, room if max_tokens is None else max_tokens, self.tokenizer.stop_ids)
        return lambda sink: Request(
            prompt=prompt,
            sampling=sampling,
            sink=sink,
            constraint=constraint,
            prompt_logprobs=wishes.logprobs if echo else None,
        )

    # ── tokens -> items ──────────────────────────────────────────────────────────────────────────

    def _run(self, make: _Make, reader: Reader[Item]) -> Generator[Item]:
        steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
        request = make(steps.put)
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

    def _arun(self, make: _Make, reader: Reader[Item]) -> AsyncGenerator[Item]:
        steps: asyncio.Queue[Step] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def sink(step: Step) -> None:  # on the engine's thread
            loop.call_soon_threadsafe(steps.put_nowait, step)

        request = make(sink)
        self.engine.submit(request)

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


def language(tokenizer: Tokenizer) -> bytes:
    """A digest of how a conversation becomes ids: template, tools and tokenizer together."""
    call = ToolCall(id="functions.look:0", name="look", arguments="{}")
    turns = (
        Message(role="system", content="Du bist 北京."),
        Message(role="user", content="Look!"),
        Message(role="assistant", content="Well,", tool_calls=(call,)),
        Message(role="tool", content="1", tool_call_id=call.id),
    )
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    looking = Tool(name="look", parameters={"type": "object"}, declaration=tool)
    return sha256(repr(render(turns, (looking,)).ids(tokenizer)).encode()).digest()


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size != vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}",
            hint="tiktoken.model and config.json come from different models",
        )


class ScriptedLLM:
    """A ChatModel without a model, for tests of what stands above: each request takes the next answer of a script.

    An answer is text, in which K2's markers may be spelled out, or the deltas themselves; an exception among
    them is raised in their place. `requests` holds what was asked.
    """

    def __init__(
        self, answers: Iterable[str | Sequence[Delta | Exception]], *, name: str = "scripted", max_context: int = 4096
    ) -> None:
        self.name = name
        self.max_context = max_context
        self.requests: list[ChatRequest | CompletionRequest] = []
        self._answers = iter(answers)

    def unhealthy(self) -> str | None:
        return None

    def statistics(self) -> dict[str, Json]:
        """There is no engine."""
        return {"max_context": self.max_context, "engine": None, "store": None}

    def close(self) -> None:
        """Nothing to release."""

    def stream(self, request: ChatRequest) -> Generator[Delta]:
        return self._play(self._next(request))

    def astream(self, request: ChatRequest) -> AsyncGenerator[Delta]:
        return _asynchronous(self.stream(request))

    def astream_choices(self, request: ChatRequest, n: int) -> list[AsyncGenerator[Delta]]:
        return [self.astream(each) for each in choices.split(request, n)]

    def complete(self, request: ChatRequest) -> Answer:
        deltas = list(self.stream(request))
        last = deltas[-1]
        assert isinstance(last, Finished), "a script's deltas end with Finished"
        content, calls, incomplete = fold(deltas)
        return Answer(
            content=content,
            tool_calls=calls,
            incomplete=incomplete,
            reason=last.reason,
            usage=last.usage,
            prompt_ids=(),
            token_ids=(),
        )

    def stream_completion(self, request: CompletionRequest) -> Generator[Piece]:
        return self._play(
            [
                TokenDelta(token, delta.text) if isinstance(delta, TextDelta) else delta
                for token, delta in enumerate(self._next(request))
                if isinstance(delta, TextDelta | Finished | Exception)
            ]
        )

    def astream_completions(self, request: CompletionRequest, n: int) -> list[AsyncGenerator[Piece]]:
        return [_asynchronous(self.stream_completion(each)) for each in choices.split(request, n)]

    def encode(self, text: str) -> list[int]:
        """One id a byte: a script has no vocabulary."""
        return list(text.encode())

    def _next(self, request: ChatRequest | CompletionRequest) -> Sequence[Delta | Exception]:
        self.requests.append(request)
        answer = next(self._answers, None)
        if answer is None:
            raise EngineError(f"the script has no answer to request {len(self.requests)}")
        return _spoken(answer) if isinstance(answer, str) else answer

    def _play(self, items: Sequence[Item | Exception]) -> Generator[Item]:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item


def _spoken(text: str) -> list[Delta]:
    """`text` as a model would say it, word by word."""
    parser = TextParser()
    words: list[str] = re.findall(r"\s*\S+|\s+", text)
    deltas = [delta for word in words for delta in parser.push(word)] + parser.finish()
    called = any(isinstance(delta, CallEnded) for delta in deltas)
    usage = Usage(prompt_tokens=0, completion_tokens=len(words))
    return [*deltas, Finished("tool_calls" if called else "stop", usage)]


async def _asynchronous(items: Iterable[Item]) -> AsyncGenerator[Item]:
    for item in items:
        await asyncio.sleep(0)
        yield item
