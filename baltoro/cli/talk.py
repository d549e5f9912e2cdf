"""Commands that talk: over HTTP, and in the terminal."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from baltoro.cli.app import app
from baltoro.cli.options import (
    MODEL_HELP,
    AnyFormat,
    ExpertMemory,
    NoPrefixCache,
    OptionalModel,
    PrefixDirectory,
    PrefixSize,
    Threads,
    TraceFile,
    WeightFormat,
)
from baltoro.errors import BaltoroError, RequestError

if TYPE_CHECKING:
    from baltoro.chat.messages import Tool
    from baltoro.llm import LLM

MAX_WAITING = 1024  # requests, unless told otherwise
STUCK_AFTER_S = 600.0  # the same


def _open(
    model: str,
    *,
    threads: int | None,
    format: WeightFormat | None,
    max_context: int | None = None,
    max_running: int | None = None,
    max_waiting: int | None = None,
    request_timeout_s: float | None = None,
    stuck_after_s: float = STUCK_AFTER_S,
    expert_memory: int | None = None,
    trace: Path | None = None,
    trace_steps: Path | None = None,
    prefix_cache: bool = True,
    prefix_dir: Path | None = None,
    prefix_disk_bytes: int | None = None,
) -> LLM:
    from baltoro.llm import LLM
    from baltoro.start import PREFIX_DISK_BYTES

    began = time.monotonic()
    typer.echo(f"loading {model} ...", err=True)
    llm = LLM.open(
        model,
        max_context=max_context,
        max_running=max_running,
        max_waiting=max_waiting,
        request_timeout_s=request_timeout_s,
        stuck_after_s=stuck_after_s,
        threads=threads,
        format=format.value if format else None,
        expert_memory=expert_memory,
        trace=trace,
        trace_steps=trace_steps,
        prefix_cache=prefix_cache,
        prefix_dir=prefix_dir,
        prefix_disk_bytes=prefix_disk_bytes or PREFIX_DISK_BYTES,
    )
    typer.echo(f"loaded in {time.monotonic() - began:.1f} s; context {llm.max_context} tokens", err=True)
    if store := llm.engine.store:
        typer.echo(
            f"{store.slots:,} experts in {store.budget_bytes / 1e9:.1f} GB, the others are read from disk", err=True
        )
        if store.slots < store.chosen:
            typer.echo(f"a token chooses {store.chosen} of each layer: every use is a read, and slow", err=True)
    return llm


def _connect(model: str, upstreams: list[str], *, max_context: int | None) -> LLM:
    from baltoro.llm import LLM

    typer.echo(f"asking {', '.join(upstreams)} ...", err=True)
    llm = LLM.connect(model, upstreams, max_context=max_context, key=os.environ.get("BALTORO_UPSTREAM_KEY"))
    typer.echo(f"context {llm.max_context} tokens", err=True)
    return llm


@app.command()
def serve(
    model: OptionalModel = "nano",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="Name that requests may use; repeatable. [default: MODEL and K2's names]")
    ] = None,
    max_context: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer together.")] = None,
    max_running: Annotated[int | None, typer.Option(min=1, help="Requests decoded together. [default: 32]")] = None,
    max_waiting: Annotated[
        int | None,
        typer.Option(min=1, help="Requests that may wait; more are answered 429 with Retry-After. [default: 1024]"),
    ] = None,
    request_timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds from a request's arrival to its end. [default: no limit]")
    ] = None,
    format: AnyFormat = None,
    expert_memory: ExpertMemory = None,
    trace: TraceFile = None,
    trace_steps: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record steps and requests for ui.perfetto.dev, up to 1 GiB."),
    ] = None,
    prefix_cache: PrefixDirectory = None,
    prefix_cache_size: PrefixSize = None,
    no_prefix_cache: NoPrefixCache = False,
    threads: Threads = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Compute nothing here: send token ids to this running vLLM, SGLang or llama-server; repeatable. What "
            "BALTORO_UPSTREAM_KEY holds goes along as bearer token.",
        ),
    ] = None,
    stuck_after: Annotated[
        float | None,
        typer.Option(
            min=1, help="A step that lasts longer, in seconds, never ends: the engine is dead. [default: 600]"
        ),
    ] = None,
    exit_on_fault: Annotated[
        bool,
        typer.Option(help="Leave with exit code 1 when the engine is dead, so that what started it starts it again."),
    ] = True,
    grace: Annotated[int, typer.Option(min=0, help="Seconds that running requests get after SIGTERM.")] = 30,
) -> None:
    """Serve MODEL over the APIs of OpenAI, Anthropic and Moonshot.

    POST /v1/chat/completions, /v1/completions and /v1/messages, plain and streamed; GET /v1/models, /health, /stats
    and /docs. GET / is a page to chat on, for a browser.
    """
    from baltoro.server import listen
    from baltoro.server.app import Served, create_app

    if no_prefix_cache and prefix_cache is not None:
        raise typer.BadParameter("there is nothing to keep with --no-prefix-cache", param_hint="--prefix-cache")
    if prefix_cache_size is not None and prefix_cache is None:
        raise typer.BadParameter("how large what may be? name a DIR", param_hint="--prefix-cache-size")
    sockets = listen.bind(host, port)  # before the model loads: a taken port is told at once
    if upstream:
        local = {"max-running": max_running, "max-waiting": max_waiting, "request-timeout": request_timeout,
                 "stuck-after": stuck_after,
                 "format": format, "expert-memory": expert_memory, "trace": trace, "trace-steps": trace_steps,
                 "threads": threads, "prefix-cache": prefix_cache}  # fmt: skip
        given = [f"--{name}" for name, value in local.items() if value is not None]
        if given := given + ["--no-prefix-cache"] * no_prefix_cache:
            raise typer.BadParameter(
                "is for a model that runs here, not behind --upstream", param_hint=", ".join(given)
            )
        opened = _connect(model, upstream, max_context=max_context)
    else:
        opened = _open(
            model, max_context=max_context, max_running=max_running, max_waiting=max_waiting or MAX_WAITING,
            request_timeout_s=request_timeout, stuck_after_s=stuck_after or STUCK_AFTER_S, threads=threads,
            format=format,
            expert_memory=expert_memory, trace=trace, trace_steps=trace_steps,
            prefix_cache=not no_prefix_cache, prefix_dir=prefix_cache, prefix_disk_bytes=prefix_cache_size,
        )  # fmt: skip
    with closing(opened) as llm:
        served = Served(llm=llm, names=tuple(served_model_name or default_names(model)))
        url = listen.url(host, sockets[0])
        typer.echo(f"serving {served.names[0]} on {url}/v1 and a chat page on {url}/ (Ctrl-C stops)", err=True)
        cut = listen.run(create_app(served), sockets, grace_s=grace, leave=llm.engine.dead if exit_on_fault else None)
        fault = llm.unhealthy() if llm.engine.dead.is_set() else None
    if fault is not None:
        if llm.engine.stuck:  # Python would wait for threads that never end
            typer.echo(f"error: {fault}", err=True)
            os._exit(1)
        raise BaltoroError(fault, hint="the log above says why; /health said so too")
    if cut:
        raise BaltoroError(f"left with {cut} request(s) unfinished", hint="--grace gives them more time")


def default_names(model: str) -> list[str]:
    """The model's own name first; programs written for K2 find theirs too."""
    return list(
        dict.fromkeys([Path(model).resolve().name, "baltoro", "kimi-k2-instruct", "moonshotai/Kimi-K2-Instruct"])
    )


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default="nano")] = None,
    prompt: Annotated[
        str | None, typer.Argument(help="Ask this and leave; `-` or no terminal: ask what stdin says.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt. [default: K2's own]")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: always the likeliest token.")] = 0.6,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. [default: what the context leaves]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
    tools: Annotated[
        Path | None,
        typer.Option(help="JSON list of tools as OpenAI declares them; calls are printed, you give results."),
    ] = None,
    format: AnyFormat = None,
    expert_memory: ExpertMemory = None,
    trace: TraceFile = None,
    threads: Threads = None,
) -> None:
    """Talk to MODEL in the terminal, or ask it one PROMPT.

    A single argument that names no model is the prompt: `baltoro chat "Who are you?"` asks nano.
    """
    from baltoro import terminal
    from baltoro.chat.messages import ChatRequest, Message

    if model is not None and prompt is None and not names_model(model):
        model, prompt = None, model
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("the prompt is empty", param_hint="PROMPT")
    request = ChatRequest(
        messages=(Message(role="system", content=system),) if system is not None else (),
        tools=read_tools(tools) if tools else (),
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
    )
    opened = _open(model or "nano", threads=threads, format=format, expert_memory=expert_memory, trace=trace)
    with closing(opened) as llm:
        if prompt is None:
            terminal.converse(llm, request)
        else:
            terminal.ask(llm, replace(request, messages=(*request.messages, Message(role="user", content=prompt))))


def names_model(word: str) -> bool:
    """Whether a lone argument of `chat` means a model: a preset, or something that looks like a path."""
    from baltoro.config import PRESETS

    return word in PRESETS or (not any(c.isspace() for c in word) and ("/" in word or Path(word).exists()))


def read_tools(path: Path) -> tuple[Tool, ...]:
    """The tools of a JSON file: a list, or an object with a list `tools`, as in a request's body."""
    from baltoro.server import body, openai

    try:
        document = body.parse_json(path.read_bytes())
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}", hint="--tools takes a JSON file") from error
    if isinstance(document, dict):
        document = cast("dict[str, Any]", document).get("tools")
    return openai.read_tools(document)
