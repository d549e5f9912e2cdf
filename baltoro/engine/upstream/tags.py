"""Structural tags, as xgrammar reads them in vLLM and in SGLang, in the form that all their versions know."""

from __future__ import annotations

from typing import Any

from baltoro.structure import Tagged


def structural_tag(structure: Tagged) -> dict[str, Any]:
    return {
        "structures": [
            {"begin": tag.begin, "schema": dict(tag.schema), "end": tag.end} for tag in structure.tags
        ],
        "triggers": [structure.trigger],
    }  # fmt: skip
