"""The promises that are bounds, tried on random lives: spans of 60 seconds, and what budgets may be overshot by."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.backends import Clock, on_real_servers, on_valkey
from tests.engine.asking import an_ask, create, mint, passes, settle, user

from llmweir.decision import Admitted, LimitRefused
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.store import Store
from llmweir.engine.users import Users

few = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
steps_ms = st.sampled_from([0, 1, 250, 999, 1_000, 3_000, 9_500, 20_000, 59_000, 59_999, 60_000, 60_001, 61_000])
requests = st.lists(st.tuples(steps_ms, st.integers(1, 40)), min_size=5, max_size=40)
_names = itertools.count()


def a_new_user() -> str:
    """Name a user that no example before has used."""
    return f"user {next(_names)}"


def spans(events: list[tuple[int, int]]) -> list[int]:
    """Sum each span of 60 seconds that ends with an event: no other span holds more."""
    return [sum(size for other_ms, size in events if at_ms - 60_000 < other_ms <= at_ms) for at_ms, _ in events]


@few
@given(asked=requests, rpm=st.integers(1, 6), tpm=st.integers(40, 100), per_model=st.booleans())
@on_real_servers
async def test_p3_no_span_of_60_seconds_admits_more_than_the_limit(
    store: Store, users: Users, clock: Clock, asked: list[tuple[int, int]], rpm: int, tpm: int, per_model: bool
) -> None:
    name, passed = a_new_user(), []
    limits: dict[str, Any] = {"rpm_limit": rpm, "tpm_limit": tpm}
    if per_model:
        limits = {"model_rpm_limit": {"gpt-*": rpm}, "model_tpm_limit": {"gpt-4o": tpm}}
    await create(users, name, **limits)
    for number, (ms, tokens) in enumerate(asked):
        clock.advance(ms=ms)
        if isinstance(await store.admit(an_ask(f"{name} {number}", user_id=name, tokens=tokens)), Admitted):
            passed.append((clock(), tokens))
    assert max(spans(passed)) <= tpm
    assert max(spans([(at_ms, 1) for at_ms, _ in passed])) <= rpm


@few
@given(asked=requests, rpm=st.integers(1, 6), tpm=st.integers(40, 100))
@on_real_servers
async def test_p3_a_caller_that_comes_back_when_told_is_let_in_and_a_second_earlier_is_not(
    store: Store, users: Users, clock: Clock, asked: list[tuple[int, int]], rpm: int, tpm: int
) -> None:
    name = a_new_user()
    await create(users, name, rpm_limit=rpm, tpm_limit=tpm, model_rpm_limit={"*": rpm})
    for number, (ms, tokens) in enumerate(asked):
        ask = an_ask(f"{name} {number}", user_id=name, tokens=tokens)
        clock.advance(ms=ms)
        decision = await store.admit(ask)
        if isinstance(decision, LimitRefused):
            assert (decision.kind, decision.wait_ms <= 61_000) == ("wait", True)
            clock.advance(ms=decision.wait_ms - 1)
            assert isinstance(await store.admit(ask), LimitRefused)
            clock.advance(ms=1)
            assert isinstance(await store.admit(ask), Admitted)


@pytest.mark.parametrize("each_ms", [100, 333, 1_000])
@on_real_servers
async def test_p3_at_least_59_of_60_parts_of_the_limit_get_through(
    store: Store, users: Users, clock: Clock, each_ms: int
) -> None:
    minutes, rpm = 10, 60
    await create(users, rpm_limit=rpm)
    passed = 0
    for number in range(minutes * 60_000 // each_ms):
        passed += isinstance(await store.admit(an_ask(f"{number}")), Admitted)
        clock.advance(ms=each_ms)
    assert passed >= minutes * rpm * 59 / 60


@few
@given(asked=requests, rpm=st.integers(1, 6), tpm=st.integers(40, 100))
@on_valkey
async def test_p3_no_span_of_60_seconds_admits_more_than_a_keys_limit_whatever_else_its_user_sends(
    store: Store, users: Users, clock: Clock, asked: list[tuple[int, int]], rpm: int, tpm: int
) -> None:
    name, passed = a_new_user(), []
    await create(users, name, rpm_limit=100)
    keys = [hash_key((await mint(users, name, rpm_limit=rpm, tpm_limit=tpm)).secret), ""]
    for number, (ms, tokens) in enumerate(asked):
        clock.advance(ms=ms)
        for which, key in enumerate(keys):
            ask = an_ask(f"{name} {number} {which}", user_id=name, key_hash=key, tokens=tokens)
            if isinstance(await store.admit(ask), Admitted) and key:
                passed.append((clock(), tokens))
    assert max(spans(passed)) <= tpm
    assert max(spans([(at_ms, 1) for at_ms, _ in passed])) <= rpm


@few
@given(asked=requests, rpm=st.integers(1, 6), tpm=st.integers(40, 100))
@on_valkey
async def test_p3_a_key_that_comes_back_when_told_is_let_in_and_a_second_earlier_is_not(
    store: Store, users: Users, clock: Clock, asked: list[tuple[int, int]], rpm: int, tpm: int
) -> None:
    name = a_new_user()
    await create(users, name, rpm_limit=100)
    key = hash_key((await mint(users, name, rpm_limit=rpm, tpm_limit=tpm)).secret)
    for number, (ms, tokens) in enumerate(asked):
        ask = an_ask(f"{name} {number}", user_id=name, key_hash=key, tokens=tokens)
        clock.advance(ms=ms)
        decision = await store.admit(ask)
        if isinstance(decision, LimitRefused):
            assert (decision.kind, decision.limit.of_key) == ("wait", True)
            clock.advance(ms=decision.wait_ms - 1)
            assert isinstance(await store.admit(ask), LimitRefused)
            clock.advance(ms=1)
            assert isinstance(await store.admit(ask), Admitted)


@few
@given(order=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 30)), min_size=5, max_size=40))
@on_real_servers
async def test_p4_with_holds_of_the_most_that_can_be_used_spend_never_passes_the_budget(
    store: Store, users: Users, order: list[tuple[int, int, int]]
) -> None:
    name, budget, in_flight = a_new_user(), 100, dict[str, int]()
    await create(users, name, max_budget_nanos=budget, model_max_budget={"*": 1})
    for number, (which, hold, used) in enumerate(order):
        request_id = f"{name} {number}"
        if which < 3:
            decision = await store.admit(an_ask(request_id, user_id=name, nanos=hold))
            if isinstance(decision, Admitted):
                in_flight[request_id] = hold
        elif in_flight:
            settled = list(in_flight)[used % len(in_flight)]
            await settle(store, settled, user_id=name, nanos=min(used, in_flight.pop(settled)))
        record = (await user(users, name)).record
        assert record.spend_nanos + record.reserved_nanos <= budget


@few
@given(order=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 90)), min_size=5, max_size=40))
@on_valkey
async def test_p4_a_key_overshoots_its_budget_by_at_most_what_was_used_beyond_the_holds(
    store: Store, users: Users, order: list[tuple[int, int, int]]
) -> None:
    name, budget, in_flight, beyond, spent = a_new_user(), 100, dict[str, int](), 0, 0
    await create(users, name, max_budget_nanos=10_000)
    key = hash_key((await mint(users, name, max_budget=1e-7)).secret)
    for number, (which, hold, used) in enumerate(order):
        request_id = f"{name} {number}"
        before = (await user(users, name)).record.reserved_nanos
        if which < 3:
            ask = an_ask(request_id, user_id=name, key_hash=key, nanos=(hold // 2, hold))
            if isinstance(await store.admit(ask), Admitted):
                in_flight[request_id] = (await user(users, name)).record.reserved_nanos - before
                beyond = 0
        elif in_flight:
            settled = list(in_flight)[used % len(in_flight)]
            beyond += max(0, used - in_flight.pop(settled))
            spent += used
            await settle(store, settled, user_id=name, nanos=used)
        assert (await user(users, name)).keys[0].spend_nanos == spent
        assert spent + sum(in_flight.values()) <= budget + beyond


@few
@given(order=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 90)), min_size=5, max_size=40))
@on_real_servers
async def test_p4_the_overshoot_is_at_most_what_requests_in_flight_used_beyond_their_holds(
    store: Store, users: Users, order: list[tuple[int, int, int]]
) -> None:
    name, budget, beyond, in_flight = a_new_user(), 100, 0, dict[str, int]()
    await create(users, name, max_budget_nanos=budget)
    for number, (which, hold, used) in enumerate(order):
        request_id = f"{name} {number}"
        before = (await user(users, name)).record
        if which < 3:
            decision = await store.admit(an_ask(request_id, user_id=name, nanos=(hold // 2, hold)))
            if isinstance(decision, Admitted):
                record = (await user(users, name)).record
                in_flight[request_id], beyond = record.reserved_nanos - before.reserved_nanos, 0
        elif in_flight:
            settled = list(in_flight)[used % len(in_flight)]
            beyond += max(0, used - in_flight.pop(settled))
            await settle(store, settled, user_id=name, nanos=used)
        record = (await user(users, name)).record
        assert record.spend_nanos <= record.spend_nanos + record.reserved_nanos <= budget + beyond


@on_valkey
async def test_p4_twenty_small_calls_at_once_all_pass_on_a_small_budget(store: Store, users: Users) -> None:
    await create(users, max_budget=1)
    for number in range(20):
        await passes(store, an_ask(f"{number}", nanos=(1_000, 50_000_000)))
