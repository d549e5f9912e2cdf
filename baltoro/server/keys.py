"""API keys: their form, what each may do, and how one that comes in is told from a forgery.

    sk-baltoro-3f9c2a1b7d60-Zl1x...   12 hex digits by which the key is known, then 256 random bits

Kept is the SHA-256 of the whole text. A slow hash protects what people make up; nobody guesses 256 bits.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256

_FORM = re.compile(r"sk-baltoro-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one key may spend; None: no limit. Tokens are those of prompts, cached ones too, and of answers."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None  # requests under way
    token_budget: int | None = None  # in all
    token_budget_month: int | None = None  # in a calendar month, UTC
    money_budget: int | None = None  # in all; billionths of the prices' currency
    money_budget_month: int | None = None  # in a calendar month, UTC; billionths

    @property
    def wants_prices(self) -> bool:
        return self.money_budget is not None or self.money_budget_month is not None


LIMITS = tuple(each.name for each in fields(Limits))


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it is kept: the secret itself is not here."""

    id: str  # the public part of its text
    name: str
    digest: bytes = field(repr=False)
    created_s: int  # Unix time, as the two below
    expires_s: int | None = None
    revoked_s: int | None = None
    models: tuple[str, ...] | None = None  # that it may ask; None: all
    limits: Limits = Limits()

    def state(self, now_s: float) -> str:
        if self.revoked_s is not None:
            return "revoked"
        return "expired" if self.expires_s is not None and self.expires_s <= now_s else "active"

    def allows(self, names: Iterable[str]) -> bool:
        """Whether it may ask a model that goes by these names."""
        return self.models is None or not set(self.models).isdisjoint(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a key has used until now. Costs are billionths of the prices' currency."""

    tokens: int = 0
    tokens_month: int = 0  # in this calendar month, UTC
    cost: int = 0
    cost_month: int = 0


def make() -> tuple[str, str]:
    """A new secret, and the id in it."""
    name = secrets.token_hex(6)
    return f"sk-baltoro-{name}-{secrets.token_urlsafe(32)}", name


def id_of(text: str) -> str | None:
    """The id in a key's text; None where it has not the form of one."""
    match = _FORM.fullmatch(text)
    return match[1] if match else None


def digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogateescape")).digest()


def same(text: str, expected: bytes) -> bool:
    """Whether `expected` is the digest of `text`. Takes as long wherever the two differ."""
    return hmac.compare_digest(digest(text), expected)


def presented(headers: Mapping[bytes, bytes]) -> str | None:
    """The key that a request came with: OpenAI's clients send a bearer token, Anthropic's x-api-key."""
    kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get(b"x-api-key", b"").decode("latin-1").strip() or None
