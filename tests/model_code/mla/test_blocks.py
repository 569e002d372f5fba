"""What a block is called, and what a value must look like to be believed."""

import dataclasses
import os
import random

import pytest

from model_code.mla.store.arena import BlockArena
from model_code.mla.store.blocks import HEADER_BYTES, BlockLayout, key_of
from model_code.mla.store.breaker import FAILURES, LONGEST_PAUSE_S, CircuitBreaker

LAYOUT = BlockLayout(
    model="a" * 64, dtype="bfloat16", layers=3, row_bytes=20, tokens=16, tenant="t"
)
PROMPT = list(range(100, 180))
PAYLOAD = os.urandom(LAYOUT.payload_bytes)


def value(digest: bytes, payload: bytes = PAYLOAD, layout: BlockLayout = LAYOUT) -> bytearray:
    return bytearray(layout.header(digest, payload) + payload)


def test_only_whole_blocks_have_digests() -> None:
    assert [len(LAYOUT.digests(PROMPT[:n])) for n in (0, 15, 16, 31, 32, 80)] == [0, 0, 1, 1, 2, 5]
    assert LAYOUT.digests(PROMPT, end=47) == LAYOUT.digests(PROMPT)[:2]


def test_a_digest_depends_on_every_token_before_the_blocks_end() -> None:
    whole = LAYOUT.digests(PROMPT)
    for at in range(80):
        changed = LAYOUT.digests([*PROMPT[:at], 5, *PROMPT[at + 1 :]])
        assert [a == b for a, b in zip(whole, changed, strict=True)] == [
            (index + 1) * 16 <= at for index in range(5)
        ]


@pytest.mark.parametrize(
    "other",
    [{"model": "b" * 64}, {"dtype": "float32"}, {"layers": 2}, {"row_bytes": 24}, {"tenant": "u"},
     {"dtype": "bfloat16t", "tenant": ""}, {"stored": "fp8"}],
)  # fmt: skip
def test_nothing_that_differs_shares_a_digest(other: dict[str, object]) -> None:
    layout = dataclasses.replace(LAYOUT, **other)  # type: ignore[arg-type]
    assert not set(layout.digests(PROMPT)) & set(LAYOUT.digests(PROMPT))


def test_a_key_is_ascii_and_has_no_hash_tag() -> None:
    key = key_of(LAYOUT.digests(PROMPT)[0])
    assert key.isascii()
    assert key.startswith(b"isomorph:latent:")
    assert not set(b"{} \r\n") & set(key)


def test_a_value_is_believed_only_whole_unchanged_and_under_its_own_digest() -> None:
    first, second = LAYOUT.digests(PROMPT)[:2]
    good = value(first)
    assert LAYOUT.holds(first, memoryview(good))
    assert not LAYOUT.holds(second, memoryview(good)), "another block's value"
    assert not LAYOUT.holds(first, memoryview(good[:-1])), "cut short"
    assert not LAYOUT.holds(first, memoryview(good + b"x")), "too long"
    for at in [*range(HEADER_BYTES), *random.Random(1).sample(range(len(good)), 100)]:  # noqa: S311
        bad = good.copy()
        bad[at] ^= 1
        assert not LAYOUT.holds(first, memoryview(bad)), f"byte {at} was changed"


def test_a_value_of_an_older_layout_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = LAYOUT.digests(PROMPT)[0]
    old = value(first)
    monkeypatch.setattr("model_code.mla.store.blocks.LAYOUT", 2)
    assert not LAYOUT.holds(first, memoryview(old))
    assert LAYOUT.digests(PROMPT)[0] != first


def test_a_value_of_another_dtype_is_not_believed_even_under_the_same_digest() -> None:
    first = LAYOUT.digests(PROMPT)[0]
    in_fp8 = dataclasses.replace(LAYOUT, stored="fp8")
    assert in_fp8.value_bytes == LAYOUT.value_bytes
    assert not LAYOUT.holds(first, memoryview(value(first, layout=in_fp8)))
    assert not in_fp8.holds(first, memoryview(value(first)))
    assert in_fp8.holds(first, memoryview(value(first, layout=in_fp8)))


def test_what_is_stored_as_it_is_computed_keeps_its_name_and_header() -> None:
    """So that the blocks of a cache survive an update of its nodes; else LAYOUT has to change."""
    first = LAYOUT.digests(PROMPT)[0]
    assert first.hex() == "4cf189b5ca98f95ce1cb8d373e595f9669004f7e4ca9da37"
    assert LAYOUT.header(first, b"x" * LAYOUT.payload_bytes).hex() == (
        "49534d4c010040000300100014000000c003000000000000"
        "4cf189b5ca98f95ce1cb8d373e595f9669004f7e4ca9da37833db1ab5726d0cad8cf4be42e2e91d0"
    )


def test_an_arena_reuses_what_is_longest_unused() -> None:
    arena = BlockArena(count=2, size=4)
    for digest in (b"a", b"b"):
        place = arena.reserve()
        assert place is not None
        arena.view(place)[:] = digest * 4
        arena.publish(digest, place)
    with arena.held(b"a") as held:
        assert held == b"aaaa"
    assert arena.reserve() is not None
    assert (b"a" in arena, b"b" in arena) == (True, False)


def test_an_arena_never_reuses_what_is_held() -> None:
    arena = BlockArena(count=1, size=4)
    place = arena.reserve()
    assert place == 0
    assert arena.reserve() is None
    arena.publish(b"a", place)
    with arena.held(b"a"), arena.held(b"a"):
        assert arena.reserve() is None
    assert arena.reserve() == 0
    arena.give_back(0)
    with arena.held(b"a") as gone:
        assert gone is None


def test_a_breaker_opens_after_failures_and_tries_again_ever_more_rarely() -> None:
    now = 0.0
    breaker = CircuitBreaker(clock=lambda: now)
    for _ in range(FAILURES):
        assert breaker.allows()
        breaker.failed()
    assert breaker.open
    pauses = []
    for _ in range(8):
        since = now
        while not breaker.allows():
            now += 0.5
        assert not breaker.allows(), "one trial at a time"
        breaker.failed()
        pauses.append(now - since)
    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-1] == LONGEST_PAUSE_S
    now += LONGEST_PAUSE_S
    assert breaker.allows()
    breaker.succeeded()
    assert not breaker.open
    assert breaker.allows()
