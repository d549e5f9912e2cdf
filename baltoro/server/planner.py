"""`/plan`: the calculator of `baltoro plan` as a page; `/plan.json` asks the same Python that the command runs.

A machine of the catalogue or a described one, never this one: a visitor must not make a server measure itself. What is
asked is bounded, answered in some milliseconds, and needs no model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from baltoro.config import PRESETS, ModelConfig
from baltoro.errors import BaltoroError, PlanError, RequestError
from baltoro.plan import document, planner
from baltoro.plan.formats import FORMATS, format_of
from baltoro.plan.launch import engines, forms
from baltoro.plan.launch.processes import Site
from baltoro.plan.layout import parse
from baltoro.plan.machine import Catalogue, Described, Machine, catalogue, described, machine_named, parse_rate
from baltoro.plan.memory import PLACES, Wish
from baltoro.sizes import parse_bytes

LONGEST = 100  # characters of a value
MOST_REQUESTS = 100_000
FIELDS = frozenset(
    {"model", "machine", "format", "context", "concurrency", "place", "layout", "ram", "ram_bandwidth", "disk", "gpu",
     "nodes", "cores", "price_hour", "prompt", "answer"}
)  # fmt: skip


def router() -> APIRouter:
    """GET /plan.json; the page itself is of page.py, with the other files."""
    routes = APIRouter(include_in_schema=False)
    known = catalogue()
    configs = {name: ModelConfig.open(name) for name in PRESETS}

    @routes.get("/plan.json")
    def plan(request: Request) -> JSONResponse:  # on a thread: it is arithmetic, some milliseconds of it
        return JSONResponse(answer(_asked(request), known, configs))

    return routes


def answer(asked: dict[str, str], known: Catalogue, configs: dict[str, ModelConfig]) -> dict[str, Any]:
    """asked: by FIELDS. What does not fit is an answer, too: `fits` is false then, and `error` says by how much."""
    name = asked.get("model", "kimi-k2-instruct")
    if name not in configs:
        raise RequestError(f"the model {name!r}", hint=f"one of {', '.join(configs)}", param="model")
    config = configs[name]
    try:
        machine = _machine(asked, known)
        wish = Wish(
            context=_whole(asked, "context", min(131072, config.max_position_embeddings), 2**24),
            concurrency=_whole(asked, "concurrency", 1, MOST_REQUESTS),
            layout=parse(asked["layout"]) if "layout" in asked else None,
            place=_place(asked),
        )
        format = format_of(asked["format"]) if "format" in asked else None
        mix = planner.Mix(prompt=_whole(asked, "prompt", 2048, 2**24), answer=_whole(asked, "answer", 512, 2**24))
    except RequestError:
        raise
    except BaltoroError as error:
        raise RequestError(error.message, hint=error.hint) from error
    choices = {
        "models": list(configs), "machines": {key: each.title for key, each in known.machines.items()},
        "formats": list(FORMATS), "places": list(PLACES), "gpus": list(known.gpus),
    }  # fmt: skip
    try:
        card = known.gpus["RTX-4090"]
        found = planner.make(name, config, machine, wish, card=card, format=format, mix=mix)
    except PlanError as error:
        return document.refused(name, config, machine, wish, error) | {"choices": choices}
    return document.document(found) | {"commands": _commands(found), "choices": choices}


def _commands(found: planner.Plan) -> dict[str, str]:
    path = f"/models/{found.model}"
    site = Site(model=path, tokenizer=path)
    try:
        return forms.files("shell", found, engines.launch(found, engines.default(found), site), site)
    except PlanError:  # bits of other engines' files: the plan stands without commands
        return {}


def _asked(request: Request) -> dict[str, str]:
    """Empty fields of a form are not asked for."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in FIELDS:
            raise RequestError(
                f"unknown: {name[:LONGEST]!r}", hint=f"known are {', '.join(sorted(FIELDS))}", param=name[:LONGEST]
            )
        if name in found:
            raise RequestError(f"{name} is given twice", param=name)
        if len(value) > LONGEST:
            raise RequestError(f"{name} has more than {LONGEST} characters", param=name)
        if value.strip():
            found[name] = value.strip()
    return found


def _machine(asked: dict[str, str], known: Catalogue) -> Machine:
    options = Described(
        ram=float(parse_bytes(asked["ram"])) if "ram" in asked else None,
        ram_bandwidth=parse_rate(asked["ram_bandwidth"]) if "ram_bandwidth" in asked else None,
        disk=parse_rate(asked["disk"]) if "disk" in asked else None,
        gpu=asked.get("gpu"),
        nodes=_whole(asked, "nodes", 1, 10_000) if "nodes" in asked else None,
        cores=_whole(asked, "cores", 1, 100_000) if "cores" in asked else None,
        price_hour=_money(asked),
    )
    base = machine_named(asked["machine"], known) if "machine" in asked else None
    if base is None and not options.says_anything:
        base = known.machines["desktop"]
    return replace(described(options, known, base), watts=None)


def _whole(asked: dict[str, str], name: str, default: int, most: int) -> int:
    if name not in asked:
        return default
    text = asked[name]
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= most:
        raise RequestError(f"{name} is {text!r}, expected a whole number from 1 to {most:,}", param=name)
    return int(text)


def _money(asked: dict[str, str]) -> float | None:
    if "price_hour" not in asked:
        return None
    try:
        value = float(asked["price_hour"])
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise RequestError(f"price_hour is {asked['price_hour']!r}, expected money for an hour", param="price_hour")
    return value


def _place(asked: dict[str, str]) -> str | None:
    place = asked.get("place")
    if place is not None and place not in PLACES:
        raise RequestError(f"the place {place!r}", hint=f"one of {', '.join(PLACES)}", param="place")
    return place
