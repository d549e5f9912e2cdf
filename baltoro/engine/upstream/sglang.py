"""SGLang: POST /generate with token ids.

Written from its sources of 2026-11 and never tried against a running one: no build of it installs without a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from baltoro.engine.request import SamplingParams
from baltoro.engine.upstream.dialect import Ask, Chunk, Event, Heard, Malformed, ids_of, look_for_error, signed_seed
from baltoro.engine.upstream.tags import structural_tag
from baltoro.errors import RequestError
from baltoro.structure import Document

NEVER = -1e9  # a bias beyond every logit: it has no list of allowed ids
BOUNDS = {"presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0), "repetition_penalty": (0.01, 2.0)}


class Sglang:
    name = "sglang"
    path = "/generate"
    health = "/health"

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def check(self, sampling: SamplingParams) -> None:
        if sampling.logprobs is not None:
            raise RequestError(
                "logprobs are not to be had: SGLang reports those behind temperature and penalties", param="logprobs"
            )
        for name, (least, greatest) in BOUNDS.items():
            if not least <= getattr(sampling, name) <= greatest:
                raise RequestError(
                    f"{name} is {getattr(sampling, name)}, expected {least:g} to {greatest:g} (SGLang's bounds)",
                    param=name,
                )

    def body(self, ask: Ask) -> dict[str, Any]:
        s = ask.sampling
        sampling: dict[str, Any] = {
            "max_new_tokens": s.max_tokens,
            "min_new_tokens": s.min_tokens,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k or -1,
            "min_p": s.min_p,
            "repetition_penalty": s.repetition_penalty,
            "presence_penalty": s.presence_penalty,
            "frequency_penalty": s.frequency_penalty,
            "stop_token_ids": sorted(s.stop_token_ids),
            "ignore_eos": True,  # what ends an answer is in stop_token_ids, and nothing else
            "no_stop_trim": True,
            "skip_special_tokens": False,
        }
        bias = {str(token): value for token, value in s.logit_bias.items()}
        if ask.allowed is not None:
            refused = set(range(self._vocab_size)).difference(ask.allowed)
            bias |= {str(token): NEVER for token in sorted(refused)}
        elif isinstance(ask.structure, Document):
            sampling["json_schema"] = json.dumps(dict(ask.structure.schema), ensure_ascii=False)
        elif ask.structure is not None:
            sampling["structural_tag"] = json.dumps(structural_tag(ask.structure), ensure_ascii=False)
        if bias:
            sampling["logit_bias"] = bias
        if s.seed is not None:
            sampling["sampling_seed"] = signed_seed(s.seed)
        return {"input_ids": list(ask.prompt), "sampling_params": sampling, "stream": True}

    def reader(self) -> Callable[[Event], Chunk]:
        seen = 0

        def read(event: Event) -> Chunk:
            nonlocal seen
            look_for_error(event)
            meta = event.get("meta_info")
            if not isinstance(meta, dict):
                raise Malformed("an event without meta_info")
            meta = cast("dict[str, Any]", meta)
            tokens, total = ids_of(event.get("output_ids")), meta.get("completion_tokens")
            if not isinstance(total, int) or total < seen:
                raise Malformed(f"completion_tokens is {total!r} behind {seen}")
            # By default each event repeats all tokens so far; servers with --stream-output send the new ones alone.
            new = tokens[seen:] if len(tokens) == total else tokens
            seen = total
            return Chunk([Heard(token) for token in new], over=meta.get("finish_reason") is not None)

        return read
