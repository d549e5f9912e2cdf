"""A plan as one SVG: a bar of bytes for each place, and the band of tokens a second of each format."""

from __future__ import annotations

import math
from html import escape

from baltoro.plan.planner import Plan
from baltoro.plan.text import band, size

WIDTH, LEFT, BAR, ROW = 860, 170, 22, 40
COLORS = ("#0b6477", "#74a9b6", "#d39b2d", "#8a5a83", "#4d7a4f")
PURPOSES = ("routed experts", "resident weights", "cache", "activations", "checkpoint")


def svg(plan: Plan) -> str:
    rows: list[str] = []
    top = 70
    for where, room in plan.memory.capacity:
        rows.append(_text(16, top + 16, where))
        span = max(room, plan.memory.used(where))
        x = float(LEFT)
        for item in plan.memory.items:
            if item.where == where:
                width = item.bytes / span * (WIDTH - LEFT - 20)
                title = f"{item.purpose}: {size(item.bytes)}, {item.formula}"
                rows.append(_bar(x, top, width, COLORS[PURPOSES.index(item.purpose)], title))
                x += width
        rows.append(_frame(LEFT, top, room / span * (WIDTH - LEFT - 20)))
        rows.append(_text(LEFT, top + BAR + 13, f"{size(plan.memory.used(where))} of {size(room)}", small=True))
        top += ROW + 10
    for place, purpose in enumerate(PURPOSES[:4]):
        rows.append(_bar(LEFT + place * 160, top, 12, COLORS[place], purpose, height=12))
        rows.append(_text(LEFT + place * 160 + 18, top + 11, purpose, small=True))
    top += 44
    rates = [each for each in plan.formats if each.tokens_per_s is not None]
    most = max((each.tokens_per_s.most for each in rates if each.tokens_per_s), default=1.0)
    least = min((each.tokens_per_s.least for each in rates if each.tokens_per_s), default=most / 10)
    low, high = math.log10(least) - 0.1, math.log10(most) + 0.1

    def x_of(rate: float) -> float:
        return LEFT + (math.log10(rate) - low) / (high - low) * (WIDTH - LEFT - 200)

    scale = f"tokens/s of one request, {plan.wish.concurrency} at once, from low to high (logarithmic)"
    rows.append(_text(16, top, scale, small=True))
    top += 14
    for each in rates:
        assert each.tokens_per_s is not None
        rate = each.tokens_per_s
        color = COLORS[0] if each.format == plan.format.name else COLORS[1]
        rows.append(_text(16, top + 16, f"{each.format}, {each.place}"))
        rows.append(_bar(x_of(rate.least), top + 4, x_of(rate.most) - x_of(rate.least), color, band(rate), height=14))
        rows.append(_bar(x_of(rate.expected) - 2, top, 4, "#1f2123", band(rate)))
        rows.append(_text(x_of(rate.most) + 8, top + 16, band(rate), small=True))
        top += ROW - 6
    head = f"{plan.model} in {plan.format.name} on {plan.machine.title}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 16}" '
            f'width="{WIDTH}" height="{top + 16}" '
            'font-family="system-ui, sans-serif" font-size="13">',
            f"<title>{escape(head)}</title>",
            f'<rect width="{WIDTH}" height="{top + 16}" fill="#fcfcfa"/>',
            f'<text x="16" y="30" font-size="16" font-weight="600" fill="#1f2123">{escape(head)}</text>',
            _text(16, 50, f"{band(plan.tokens_per_s)} tokens/s; {plan.single.binding} binds", small=True),
            *rows,
            "</svg>\n",
        ]
    )


def _bar(x: float, y: float, width: float, color: str, title: str, height: int = BAR) -> str:
    tip = f"<title>{escape(title)}</title>"
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width):.1f}" height="{height}" fill="{color}">{tip}</rect>'


def _frame(x: float, y: float, width: float) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="none" stroke="#5c6166"/>'


def _text(x: float, y: float, text: str, *, small: bool = False) -> str:
    style = 'font-size="11.5" fill="#5c6166"' if small else 'fill="#1f2123"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
