"""What a million tokens cost, where prices are given, and what energy they take.

money     (price of a node's hour + kW * price of a kWh) * nodes / (tokens a second * 3600) * 1,000,000
tokens    those that are generated; their prompts, `Mix`, are computed in the same time and not counted
"""

from __future__ import annotations

from dataclasses import dataclass

from baltoro.plan.efficiency import Band
from baltoro.plan.machine import Machine

MILLION = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a million generated tokens; (low, expected, high). None: no price, or no watts, were given."""

    money: tuple[float, float, float] | None
    kwh: tuple[float, float, float] | None
    watts: float | None  # of all nodes


def cost(machine: Machine, throughput: Band, electricity: float | None) -> Cost | None:
    watts = None if machine.watts is None else machine.nodes * machine.watts
    power = watts / 1000 * electricity if watts is not None and electricity is not None else None
    rent = None if machine.price_hour is None else machine.nodes * machine.price_hour
    if watts is None and rent is None:
        return None
    hours = [MILLION / rate / 3600 for rate in (throughput.most, throughput.expected, throughput.least)]
    low, expected, high = hours
    an_hour = (rent or 0.0) + (power or 0.0) if rent is not None or power is not None else None
    return Cost(
        money=None if an_hour is None else (low * an_hour, expected * an_hour, high * an_hour),
        kwh=None if watts is None else (low * watts / 1000, expected * watts / 1000, high * watts / 1000),
        watts=watts,
    )
