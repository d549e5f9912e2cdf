"""Bars as SVG, drawn into a page that asks nobody for anything."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_ROW, _LABEL, _WIDTH, _VALUE = 24, 290, 390, 130


class BarRow(NamedTuple):
    label: str
    share: float | None  # 0 to 1; None: not known, and no bar is drawn
    shown: str
    ours: bool = False  # drawn in the accent's colour
    low: float | None = None  # of an interval
    high: float | None = None


def bars(title: str, rows: Sequence[BarRow]) -> str:
    """One horizontal bar a row, from 0 to 1, with its interval as a line where there is one."""
    height = _ROW * len(rows) + 8
    width = _LABEL + _WIDTH + _VALUE
    size, name = f'viewBox="0 0 {width} {height}"', f'role="img" aria-label="{escape(title)}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {name}>']
    for place, row in enumerate(rows):
        y = _ROW * place + 4
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end" class="label">{escape(row.label)}</text>')
        parts.append(f'<rect x="{_LABEL}" y="{y}" width="{_WIDTH}" height="18" class="track"/>')
        if row.share is not None:
            kind = "ours" if row.ours else "other"
            wide = _WIDTH * _inside(row.share)
            parts.append(f'<rect x="{_LABEL}" y="{y}" width="{wide:.1f}" height="18" class="{kind}"/>')
        if row.low is not None and row.high is not None:
            ends = [_LABEL + _WIDTH * _inside(each) for each in (row.low, row.high)]
            parts.append(f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y + 9}" y2="{y + 9}" class="interval"/>')
        parts.append(f'<text x="{_LABEL + _WIDTH + 8}" y="{y + 14}" class="value">{escape(row.shown)}</text>')
    return "\n".join([*parts, "</svg>"])


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """title and the headings are text, what stands under them is HTML."""
    body = "\n".join(f"<section><h2>{escape(heading)}</h2>\n{inner}</section>" for heading, inner in sections)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body><h1>{escape(title)}</h1>
{body}
</body></html>
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are text."""
    lines = ["<table><thead><tr>" + "".join(f"<th>{escape(each)}</th>" for each in head) + "</tr></thead><tbody>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</tbody></table>"])


def _inside(share: float) -> float:
    return min(1.0, max(0.0, share))


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --dim: #6b6b70; --line: #d8d8dc; --page: #fff;
  --ours: #2f6fed; --other: #a9b4c6 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --dim: #9a9aa2; --line: #3a3a40; --page: #17171a; --ours: #6d9bff; --other: #5b6576 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 860px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem } p { color: var(--dim) }
section { overflow-x: auto }
svg { width: 100%; height: auto; font: 13px system-ui, sans-serif }
svg text { fill: var(--ink) } svg .value { fill: var(--dim) }
.track { fill: none; stroke: var(--line) } .ours { fill: var(--ours) } .other { fill: var(--other) }
.interval { stroke: var(--ink); stroke-width: 2 }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--dim); font-weight: 600 }
"""
