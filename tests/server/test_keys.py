"""The form of keys, and how they are told from forgeries."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.server import keys


def test_a_key_has_its_id_and_256_bits_of_its_own() -> None:
    made = [keys.make() for _ in range(200)]
    assert all(keys.id_of(secret) == key_id for secret, key_id in made)
    assert len({secret for secret, _ in made}) == len({secret[24:] for secret, _ in made}) == 200
    assert {len(secret) for secret, _ in made} == {len("sk-baltoro-") + 12 + 1 + 43}


def test_what_is_kept_is_a_hash_that_nothing_shows() -> None:
    secret, key_id = keys.make()
    key = keys.Key(id=key_id, name="anna", digest=keys.digest(secret), created_s=0)
    assert key.digest == hashlib.sha256(secret.encode()).digest()
    assert secret[24:] not in repr(key) and repr(key.digest) not in repr(key)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_another_text_is_another_key(text: str) -> None:
    secret, _ = keys.make()
    assert keys.same(secret, keys.digest(secret))
    assert not keys.same(text, keys.digest(secret))
    assert keys.id_of(text) is None


@settings(deadline=None)
@given(st.integers(0, 66), st.characters())
def test_a_key_with_one_character_changed_is_not_it(place: int, character: str) -> None:
    secret, _ = keys.make()
    changed = secret[:place] + character + secret[place + 1 :]
    assert keys.same(changed, keys.digest(secret)) == (changed == secret)


@pytest.mark.parametrize("sent", ["", "x", "sk-baltoro-" + "0" * 56, "ÿ", "sk" * 5000])
def test_keys_are_compared_as_digests_in_constant_time(sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So neither a wrong key's length nor its first letters change how long an answer takes."""
    compared: list[tuple[bytes, bytes]] = []
    honest = hmac.compare_digest

    def watch(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return honest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watch)
    assert not keys.same(sent, keys.digest("right"))
    assert [(len(one), len(other)) for one, other in compared] == [(32, 32)]


def test_both_vendors_ways_to_send_a_key_are_read() -> None:
    assert keys.presented({b"authorization": b"Bearer  abc "}) == "abc"
    assert keys.presented({b"authorization": b"bearer abc", b"x-api-key": b"def"}) == "abc"
    assert keys.presented({b"authorization": b"Basic abc", b"x-api-key": b"def"}) == "def"
    assert keys.presented({b"authorization": b"Bearer ", b"x-api-key": b" "}) is None
    assert keys.presented({b"x-api-key": b"\xff\xfe"}) == "ÿþ"
    assert keys.presented({}) is None
