"""How good is it? Of an endpoint's tool calls and manners, and of a model's answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from baltoro.cli.app import app

if TYPE_CHECKING:
    from baltoro.chat.tokenizer import Tokenizer
    from baltoro.eval.budget import Budget

Concurrency = Annotated[int, typer.Option(min=1, help="Requests at once.")]
Retries = Annotated[int, typer.Option(min=0, help="Of a request that nobody answers, later and later.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds of silence after which a request has failed.")]
BudgetTokens = Annotated[int | None, typer.Option(min=1, help="Ask nothing more when so many are used.")]
BudgetMoney = Annotated[
    str | None, typer.Option(metavar="MONEY", help="The same in money; needs --price-input and --price-output.")
]
PriceInput = Annotated[str | None, typer.Option(metavar="MONEY", help="Of a million tokens of prompts.")]
PriceOutput = Annotated[str | None, typer.Option(metavar="MONEY", help="Of a million tokens of answers.")]
ExtraBody = Annotated[str | None, typer.Option(metavar="JSON", help="An object whose fields every request gets.")]


@app.command()
def verify(
    target: Annotated[
        str, typer.Argument(metavar="URL|RESULTS", help="An endpoint, as http://127.0.0.1:8000, or a results.jsonl.")
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the endpoint calls it. [default: the first it lists]")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="K2-Vendor-Verifier's samples.jsonl. [default: 60 of our own]"),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The official API's results.jsonl to these, for tool_call_f1.")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="calls, stream, parameters, tokens, template or ids; repeatable. [default: all]"),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Directory with its tiktoken.model, for tokens and template.")
    ] = None,
    canonical_ids: Annotated[
        bool, typer.Option("--canonical-ids", help="Rename calls in the samples' histories to functions.NAME:IDX.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="Of the samples, in place of theirs.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of the samples, in place of theirs.")] = None,
    extra_body: ExtraBody = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Answers and reports. [default: ./verify-HOST]")
    ] = None,
    concurrency: Concurrency = 5,
    retries: Retries = 5,
    timeout: Timeout = 600,
    budget_tokens: BudgetTokens = None,
    budget_money: BudgetMoney = None,
    price_input: PriceInput = None,
    price_output: PriceOutput = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object.")] = False,
) -> None:
    """Say how well an endpoint serves Kimi K2: K2-Vendor-Verifier's metrics, and suites of our own.

    Are tools called where the official API calls them (tool_call_f1), and do calls follow their schemas
    (schema_accuracy)? Is a stream what the whole answer is, are parameters honoured, tokens counted by K2's vocabulary,
    prompts made by its template, ids of calls understood? A run that was killed goes on where it was, and pays nothing
    twice. Of a results.jsonl, K2-Vendor-Verifier's or ours, only the metrics are counted. What BALTORO_API_KEY holds
    goes along to the endpoint.
    """
    from baltoro.eval.verify import metrics, report
    from baltoro.eval.verify import run as verifying
    from baltoro.eval.verify import samples as sampling

    official = metrics.read(reference) if reference is not None else None
    if not target.startswith(("http://", "https://")):
        asked = (
            model,
            samples,
            suite,
            tokenizer,
            temperature,
            max_tokens,
            extra_body,
            out,
            budget_tokens,
            budget_money,
        )
        if any(given is not None for given in asked) or canonical_ids:
            raise typer.BadParameter("of recorded results nobody is asked; only --reference and --json apply")
        found = verifying.recount(Path(target), official)
    else:
        unknown = set(suite or ()) - set(verifying.SUITES)
        if unknown:
            raise typer.BadParameter(
                f"{', '.join(unknown)}; there are {', '.join(verifying.SUITES)}", param_hint="--suite"
            )
        overrides: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        overrides = {name: value for name, value in overrides.items() if value is not None}
        chosen = (
            sampling.own(overrides)
            if samples is None
            else sampling.read(samples, overrides, canonical_ids=canonical_ids)
        )
        order = verifying.Order(
            url=target, model=model, key=os.environ.get("BALTORO_API_KEY"), samples=chosen, reference=official,
            suites=suite or verifying.SUITES, tokenizer=_tokenizer(tokenizer),
            out=out or Path("verify-" + re.sub(r"[^\w.-]+", "_", target.split("://")[1]).strip("_")),
            extra=extra_of(extra_body), concurrency=concurrency, retries=retries, timeout_s=timeout,
            budget=budget_of(budget_tokens, budget_money, price_input, price_output),
        )  # fmt: skip
        found = asyncio.run(verifying.run(order))
        typer.echo(f"report: {order.out / 'report.html'}", err=True)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(report.lines(found)))


def _tokenizer(model: str | None) -> Tokenizer | None:
    if model is None:
        return None
    from baltoro.chat.tokenizer import Tokenizer
    from baltoro.config import resolve

    directory = resolve(model)
    return Tokenizer.open(directory if directory.is_dir() else directory.parent)


def extra_of(text: str | None) -> dict[str, Any]:
    try:
        document: object = json.loads(text) if text is not None else {}
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--extra-body") from error
    if not isinstance(document, dict):
        raise typer.BadParameter("expected a JSON object", param_hint="--extra-body")
    return cast("dict[str, Any]", document)


def budget_of(tokens: int | None, money: str | None, price_input: str | None, price_output: str | None) -> Budget:
    from baltoro.eval.budget import Budget
    from baltoro.server import prices

    if (price_input is None) != (price_output is None):
        raise typer.BadParameter("--price-input and --price-output go together")
    named = {"input": price_input, "output": price_output}
    price = None if price_input is None else prices.price("the endpoint", named)
    return Budget(most_tokens=tokens, most_money=None if money is None else prices.money(money), price=price)
