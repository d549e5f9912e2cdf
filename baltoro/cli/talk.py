"""Commands that talk: over HTTP, and in the terminal."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from baltoro.cli import engines, hooks, journaling, operations
from baltoro.cli.access import Access
from baltoro.cli.app import app
from baltoro.cli.engines import Engine
from baltoro.cli.operations import LogFormat, LogLevel, Say
from baltoro.cli.options import (
    MODEL_HELP,
    AnyFormat,
    Database,
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
from baltoro.sizes import parse_bytes

if TYPE_CHECKING:
    from baltoro.chat.messages import Tool
    from baltoro.llm import LLM

MAX_WAITING = 1024  # requests, unless told otherwise
STUCK_AFTER_S = 600.0  # the same


def _open(
    model: str,
    say: Say,
    *,
    threads: int | None,
    format: WeightFormat | None,
    max_context: int | None = None,
    max_running: int | None = None,
    max_waiting: int | None = None,
    request_timeout_s: float | None = None,
    stuck_after_s: float = STUCK_AFTER_S,
    loose_schemas: bool = False,
    expert_memory: int | None = None,
    trace: Path | None = None,
    trace_steps: Path | None = None,
    prefix_cache: bool = True,
    prefix_dir: Path | None = None,
    prefix_disk_bytes: int | None = None,
    draw_seeds: bool = False,
) -> LLM:
    from baltoro.llm import LLM
    from baltoro.start import PREFIX_DISK_BYTES

    began = time.monotonic()
    say(f"loading {model} ...")
    llm = LLM.open(
        model,
        max_context=max_context,
        max_running=max_running,
        max_waiting=max_waiting,
        request_timeout_s=request_timeout_s,
        stuck_after_s=stuck_after_s,
        loose_schemas=loose_schemas,
        threads=threads,
        format=format.value if format else None,
        expert_memory=expert_memory,
        trace=trace,
        trace_steps=trace_steps,
        prefix_cache=prefix_cache,
        prefix_dir=prefix_dir,
        prefix_disk_bytes=prefix_disk_bytes or PREFIX_DISK_BYTES,
        draw_seeds=draw_seeds,
    )
    say(f"loaded in {time.monotonic() - began:.1f} s; context {llm.max_context} tokens")
    if store := llm.engine.store:
        say(f"{store.slots:,} experts in {store.budget_bytes / 1e9:.1f} GB, the others are read from disk")
        if store.slots < store.chosen:
            say(f"a token chooses {store.chosen} of each layer: every use is a read, and slow")
    return llm


def _connect(model: str, say: Say, upstreams: list[str], *, max_context: int | None, loose_schemas: bool) -> LLM:
    from baltoro.llm import LLM

    say(f"asking {', '.join(upstreams)} ...")
    key = os.environ.get("BALTORO_UPSTREAM_KEY")
    llm = LLM.connect(model, upstreams, max_context=max_context, key=key, loose_schemas=loose_schemas)
    say(f"context {llm.max_context} tokens")
    return llm


@app.command(context_settings={"allow_extra_args": True})
@operations.errors_are_lines
def serve(
    context: typer.Context,
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
    loose_schemas: Annotated[
        bool,
        typer.Option(
            "--loose-schemas",
            help="Drop what no grammar enforces from schemas, and say so in the log and in the header "
            "x-baltoro-loosened, instead of refusing the request. With strict: true it is refused all the same.",
        ),
    ] = False,
    web_search: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help='Searches for Moonshot\'s $web_search: takes its arguments, {"query": TEXT}, returns text or JSON.',
        ),
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
    engine: Annotated[
        Engine,
        typer.Option(
            help="vllm: start it here with MODEL and stand before it; `-- OPTIONS` are its own. It is found on "
            "PATH, or as BALTORO_VLLM says."
        ),
    ] = Engine.baltoro,
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
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds before that, in which GET /ready is 503 and new ones are still taken.")
    ] = 0,
    keys: Annotated[bool, typer.Option("--keys", help="Ask every request for a key: `baltoro keys create`.")] = False,
    database: Database = None,
    prices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What a million tokens cost, by model: docs/security.md.")
    ] = None,
    price_input: Annotated[
        str | None, typer.Option(metavar="MONEY", help="The same for MODEL, without a file.")
    ] = None,
    price_cached_input: Annotated[
        str | None,
        typer.Option(metavar="MONEY", help="Of prompt tokens known from before. [default: as --price-input]"),
    ] = None,
    price_output: Annotated[str | None, typer.Option(metavar="MONEY", help="Of tokens that are generated.")] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write down every request and answer: `baltoro replay`.")
    ] = None,
    journal_content: Annotated[
        bool, typer.Option("--journal-content", help="Bodies and texts too, not token ids alone.")
    ] = False,
    journal_redact: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Takes a record (a dict), returns what is written, or None."),
    ] = None,
    journal_size: Annotated[
        int | None,
        typer.Option(metavar="SIZE", parser=parse_bytes, help="The most that DIR may take. [default: 10GiB]"),
    ] = None,
    journal_days: Annotated[
        float | None, typer.Option(min=0, help="How long what was written is kept. [default: no limit]")
    ] = None,
    insecure_no_keys: Annotated[
        bool, typer.Option("--insecure-no-keys", help="Listen on other networks than loopback without asking for keys.")
    ] = False,
    verified: Annotated[
        Path | None, typer.Option(metavar="FILE", help="report.json of `baltoro verify`: its scores are in /health.")
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Speak HTTPS with this certificate (PEM); SIGHUP reads it anew."),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key (PEM).")] = None,
    tls_key_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Has the password of an encrypted key.")
    ] = None,
    log_format: Annotated[
        LogFormat, typer.Option(help="Of the lines on stderr: for people, or an object a line.")
    ] = LogFormat.text,
    log_level: Annotated[LogLevel, typer.Option(help="What is told, and what is worse.")] = LogLevel.info,
    access_log: Annotated[bool, typer.Option(help="A line for every request, never with its text.")] = True,
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send a span for every request to this collector of OpenTelemetry, by HTTP; so does "
            "OTEL_EXPORTER_OTLP_ENDPOINT.",
        ),
    ] = None,
) -> None:
    """Serve MODEL over the APIs of OpenAI, Anthropic and Moonshot.

    POST /v1/chat/completions, /v1/completions, /v1/responses and /v1/messages, plain and streamed;
    POST /v1/messages/count_tokens and /v1/tokenizers/estimate-token-count; GET /v1/models, /health, /ready, /stats,
    /metrics and /docs. With --keys, or a key in BALTORO_API_KEY, all but /health, /ready and the
    chat page at / ask for one.
    """
    from baltoro.server import listen
    from baltoro.server.app import Served, create_app
    from baltoro.server.verified import Verified
    from baltoro.server.web_search import WebSearch

    if context.args and engine is Engine.baltoro:
        raise typer.BadParameter(f"{context.args[0]} is for another engine", param_hint="--engine vllm")
    if upstream and engine is Engine.vllm:
        raise typer.BadParameter("it runs already, or is started here: one of both", param_hint="--upstream, --engine")
    if no_prefix_cache and prefix_cache is not None:
        raise typer.BadParameter("there is nothing to keep with --no-prefix-cache", param_hint="--prefix-cache")
    if prefix_cache_size is not None and prefix_cache is None:
        raise typer.BadParameter("how large what may be? name a DIR", param_hint="--prefix-cache-size")
    access = Access(
        keys=keys, database=database, prices=prices, price_input=price_input, price_cached_input=price_cached_input,
        price_output=price_output, insecure_no_keys=insecure_no_keys,
    )  # fmt: skip
    say = operations.telling(log_format, log_level)
    certificate = operations.certificate(tls_cert, tls_key, tls_key_password_file)
    sockets = listen.bind(host, port)  # before the model loads: a taken port is told at once
    access.check(all(map(listen.is_loopback, sockets)))
    searches = None if web_search is None else WebSearch(hooks.load("--web-search", web_search))
    scores = None if verified is None else Verified(verified)
    names = tuple(served_model_name or default_names(model))
    accounts = access.accounts(names, say)
    writing = journaling.opened(
        journal, content=journal_content, redact=journal_redact, most_bytes=journal_size, most_days=journal_days
    )
    traces = operations.traces(otlp)
    child = None
    if upstream or engine is Engine.vllm:
        local = {"max-running": max_running, "max-waiting": max_waiting, "request-timeout": request_timeout,
                 "stuck-after": stuck_after,
                 "format": format, "expert-memory": expert_memory, "trace": trace, "trace-steps": trace_steps,
                 "threads": threads, "prefix-cache": prefix_cache}  # fmt: skip
        given = [f"--{name}" for name, value in local.items() if value is not None]
        if given := given + ["--no-prefix-cache"] * no_prefix_cache:
            raise typer.BadParameter(
                "is for our own engine, not behind --upstream or --engine", param_hint=", ".join(given)
            )
        if engine is Engine.vllm:
            running = engines.started(model, names[0], context.args, max_context=max_context, say=say)
            child = context.with_resource(running)  # ends when this command does, however
        urls = upstream if child is None else [child.url]
        opened = _connect(model, say, urls or [], max_context=max_context, loose_schemas=loose_schemas)
        if child is not None:
            child.watch(opened.engine.dead.set)
    else:
        opened = _open(
            model, say, max_context=max_context, max_running=max_running, max_waiting=max_waiting or MAX_WAITING,
            request_timeout_s=request_timeout, stuck_after_s=stuck_after or STUCK_AFTER_S, threads=threads,
            loose_schemas=loose_schemas,
            format=format,
            expert_memory=expert_memory, trace=trace, trace_steps=trace_steps,
            prefix_cache=not no_prefix_cache, prefix_dir=prefix_cache, prefix_disk_bytes=prefix_cache_size,
            draw_seeds=writing is not None,
        )  # fmt: skip
    with closing(opened) as llm:
        served = Served(llm=llm, names=names, web_search=searches, verified=scores)
        url = listen.url(host, sockets[0], scheme="https" if certificate else "http")
        say(f"serving {served.names[0]} on {url}/v1 and a chat page on {url}/ (Ctrl-C stops)")
        try:
            record = writing and writing.around(model, llm)
            watch = operations.watch(traces, access_log=access_log)
            cut = listen.run(
                create_app(served, accounts, record, watch), sockets, grace_s=grace, drain_s=drain,
                draining=served.draining, leave=llm.engine.dead if exit_on_fault else None, certificate=certificate,
            )  # fmt: skip
        finally:
            for each in (accounts, writing, traces):
                if each is not None:
                    each.close()
        fault = None
        if llm.engine.dead.is_set():
            fault = child.ended if child is not None else llm.unhealthy()
    if fault is not None:
        if llm.engine.stuck:  # Python would wait for threads that never end
            operations.tell_error(BaltoroError(fault), log_format)
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
    say = partial(typer.echo, err=True)
    opened = _open(model or "nano", say, threads=threads, format=format, expert_memory=expert_memory, trace=trace)
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
