"""The limits of an API key: a further scope of the same admission, on top of its user's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs
from tests.backends import Clock, on_valkey
from tests.engine.asking import USD, an_ask, create, mint, passes, refused, send, settle, update, user

from llmweir.decision import Admitted, CallerRefused
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.asks import AliasOf, Settlement
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.errors import NotFoundError
from llmweir.key_records import KeyFields, KeyRecord

LEASE_MS = 30_000
DAY_MS = 86_400_000


async def a_key(users: Users, /, **fields: Any) -> str:
    """Make a key of `u`, and say its hash."""
    return hash_key((await mint(users, **fields)).secret)


async def change(users: Users, **fields: Any) -> KeyRecord:
    """Change the one key of `u`."""
    (record,) = (await user(users)).keys
    return await ApiKeys(users).update(record, KeyFields.model_validate_json(json.dumps(fields)))


async def books(users: Users, clock: Clock) -> list[tuple[int, ...]]:
    """Requests, failed, input, output and nanos of each row of the days of `u`."""
    rows = await users.days("u", 0 if clock() < DAY_MS else clock() // DAY_MS - 40, clock() // DAY_MS)
    return [structs.astuple(row)[2:] for row in rows]


# The models that a key may use.


@pytest.mark.parametrize(
    ("of_key", "of_user", "model", "may"),
    [
        pytest.param([], [], "gpt-4o", True, id="no list"),
        pytest.param(["gpt-4o"], [], "gpt-4o", True, id="listed"),
        pytest.param(["gpt-4o"], [], "gpt-4o-mini", False, id="not listed"),
        pytest.param(["gpt-4*", "o1"], [], "gpt-4o", True, id="under a prefix"),
        pytest.param(["gpt-4*", "o1"], [], "o1-mini", False, id="longer than listed"),
        pytest.param(["gpt-4*", "gpt-4o-*"], [], "gpt-5", False, id="under no prefix"),
        pytest.param(["*"], [], "anything", True, id="a star alone"),
        pytest.param(["all-proxy-models"], [], "anything", True, id="all that the user may"),
        pytest.param(["all-team-models"], ["o1"], "gpt-4o", False, id="all that the user may, who may not"),
        pytest.param(["gpt-*"], ["o1"], "gpt-4o", False, id="the user may not"),
        pytest.param(["gpt-*"], ["gpt-4*", "o1"], "gpt-4o", True, id="both may"),
        pytest.param(["no-default-models"], [], "gpt-4o", False, id="none"),
        pytest.param(["gpt-4o"], [], "", True, id="no model asked for"),
    ],
)
@on_valkey
async def test_a_key_may_use_what_it_lists_of_what_its_user_may(
    store: Store, users: Users, of_key: list[str], of_user: list[str], model: str, may: bool
) -> None:
    await create(users, models=of_user)
    decision = await store.admit(an_ask(key_hash=await a_key(users, models=of_key), model=model))
    assert isinstance(decision, Admitted) if may else decision == CallerRefused("model_not_allowed")


async def test_a_list_of_models_taken_away_holds_no_more(store: Store, users: Users) -> None:
    await create(users)
    key = await a_key(users, models=["o1", "gpt-4*"])
    assert await store.admit(an_ask("a", key_hash=key, model="x")) == CallerRefused("model_not_allowed")
    await change(users, models=["x*"])
    assert await store.admit(an_ask("b", key_hash=key, model="o1")) == CallerRefused("model_not_allowed")
    await passes(store, an_ask("c", key_hash=key, model="x1"))
    await change(users, models=None)
    await passes(store, an_ask("d", key_hash=key, model="o1"))


async def test_an_alias_of_the_key_goes_before_one_of_the_user(store: Store, users: Users) -> None:
    await create(users, aliases={"fast": "of-user", "slow": "of-user"})
    key = await a_key(users, aliases={"fast": "of-key"})
    assert await store.admit(an_ask(key_hash=key, model="fast")) == AliasOf("of-key")
    assert await store.admit(an_ask(key_hash=key, model="slow")) == AliasOf("of-user")
    assert await store.admit(an_ask(model="fast")) == AliasOf("of-user")
    await passes(store, an_ask(key_hash=key, model="fast", target="of-key"))
    await change(users, aliases={})
    assert await store.admit(an_ask(key_hash=key, model="fast")) == AliasOf("of-user")


async def test_the_list_of_a_key_is_held_to_what_an_alias_stands_for(store: Store, users: Users) -> None:
    await create(users)
    key = await a_key(users, aliases={"fast": "gpt-4o", "o1": "gpt-5"}, models=["gpt-4o", "o1"])
    await passes(store, an_ask("a", key_hash=key, model="fast", target="gpt-4o"))
    assert await store.admit(an_ask("b", key_hash=key, model="o1")) == CallerRefused("model_not_allowed")


async def test_models_and_aliases_of_one_key_are_not_those_of_another(store: Store, users: Users) -> None:
    await create(users)
    await a_key(users, models=["o1"], aliases={"fast": "o1"})
    await passes(store, an_ask("a", key_hash=await a_key(users), model="fast"))
    decision = await store.admit(an_ask("b", key_hash=await a_key(users, models=["gpt-4o"]), model="o1"))
    assert decision == CallerRefused("model_not_allowed")


# The limits of a key.


@pytest.mark.parametrize(
    ("limit", "name", "kind"),
    [
        pytest.param({"rpm_limit": 2}, "rpm", "wait", id="rpm"),
        pytest.param({"tpm_limit": 20}, "tpm", "wait", id="tpm"),
        pytest.param({"max_parallel_requests": 2}, "parallel", "wait", id="parallel"),
        pytest.param({"max_budget": 2e-8}, "budget", "wait", id="budget"),
    ],
)
async def test_a_limit_of_a_key_holds_for_that_key_alone(
    store: Store, users: Users, limit: dict[str, Any], name: str, kind: str
) -> None:
    await create(users, rpm_limit=100, tpm_limit=1_000, max_parallel_requests=100, max_budget=1)
    limited, free = await a_key(users, **limit), await a_key(users)
    for request_id in "ab":
        await passes(store, an_ask(request_id, key_hash=limited, tokens=10, nanos=10))
    decision = await refused(store, an_ask("c", key_hash=limited, tokens=10, nanos=10))
    assert (decision.limit.name, decision.limit.of_key, decision.kind) == (name, True, kind)
    assert decision.limit.used + decision.limit.asked > decision.limit.limit
    await passes(store, an_ask("c", key_hash=free, tokens=10, nanos=10))
    await passes(store, an_ask("d", tokens=10, nanos=10))


async def test_p2_what_a_keys_limit_refuses_counts_nowhere(store: Store, users: Users) -> None:
    await create(users, rpm_limit=9, tpm_limit=900, max_parallel_requests=9, max_budget=1, model_rpm_limit={"*": 9})
    key = await a_key(users, tpm_limit=10)
    await refused(store, an_ask("a", key_hash=key, tokens=11, nanos=5))
    standing = (await passes(store, an_ask("b", key_hash=key, tokens=10, nanos=5))).standing
    assert (standing.rpm_used, standing.tpm_used, standing.parallel_used, standing.model_rpm_used) == (1, 10, 1, 1)
    assert standing.budget_used_nanos == 5


@pytest.mark.parametrize(
    ("of_user", "of_key", "name", "is_of_key"),
    [
        pytest.param({"rpm_limit": 1}, {"max_parallel_requests": 1}, "rpm", False, id="61 s before 1 s"),
        pytest.param({"max_parallel_requests": 1}, {"rpm_limit": 1}, "rpm", True, id="the key's 61 s before 1 s"),
        pytest.param({"max_budget": 1e-8}, {"rpm_limit": 0}, "rpm", True, id="never before wait"),
        pytest.param({"rpm_limit": 1}, {"max_budget": 0}, "budget", True, id="stop before wait"),
        pytest.param({"tpm_limit": 5}, {"max_budget": 0}, "tpm", False, id="never before stop"),
        pytest.param(
            {"max_budget": 0, "budget_duration": "1h"},
            {"max_budget": 0, "budget_duration": "2h"}, "budget", True, id="two hours before one",
        ),
        pytest.param(
            {"max_budget": 0, "budget_duration": "3h"},
            {"max_budget": 0, "budget_duration": "2h"}, "budget", False, id="three hours before two",
        ),
        pytest.param(
            {"max_budget": 0, "budget_duration": "1h"}, {"max_budget": 0}, "budget", True, id="for ever before an hour"
        ),
    ],
)  # fmt: skip
@on_valkey
async def test_of_several_in_the_way_the_longest_is_named_be_it_the_keys_or_the_users(
    store: Store, users: Users, of_user: dict[str, Any], of_key: dict[str, Any], name: str, is_of_key: bool
) -> None:
    await create(users, **of_user)
    key = await a_key(users, **of_key)
    await store.admit(an_ask("a", key_hash=key))
    decision = await refused(store, an_ask("b", key_hash=key, tokens=10, nanos=10))
    assert (decision.limit.name, decision.limit.of_key) == (name, is_of_key)


async def test_headers_show_whichever_of_user_and_key_has_less_room_left(store: Store, users: Users) -> None:
    await create(users, rpm_limit=10, tpm_limit=50, max_parallel_requests=3, max_budget=1, budget_duration="1h")
    fields = {"rpm_limit": 8, "tpm_limit": 60, "max_parallel_requests": 2, "max_budget": 0.5, "budget_duration": "2h"}
    key = await a_key(users, **fields)
    await passes(store, an_ask("a", tokens=10, nanos=10))
    standing = (await passes(store, an_ask("b", key_hash=key, tokens=10, nanos=10))).standing
    assert (standing.rpm_limit, standing.rpm_used) == (8, 1)
    assert (standing.tpm_limit, standing.tpm_used) == (50, 20)
    assert (standing.parallel_limit, standing.parallel_used) == (3, 2)
    assert (standing.budget_limit_nanos, standing.budget_used_nanos) == (USD // 2, 10)
    assert standing.budget_reset_ms == 7_200_000


async def test_a_key_shows_its_limits_where_its_user_has_none(store: Store, users: Users) -> None:
    await create(users)
    key = await a_key(users, rpm_limit=8, max_budget=0.5)
    standing = (await passes(store, an_ask("b", key_hash=key, nanos=10))).standing
    assert (standing.rpm_limit, standing.rpm_used, standing.tpm_limit) == (8, 1, -1)
    assert (standing.budget_limit_nanos, standing.budget_used_nanos, standing.budget_reset_ms) == (USD // 2, 10, -1)


async def test_a_model_without_a_price_is_refused_to_a_key_with_a_budget(store: Store, users: Users) -> None:
    await create(users)
    key = await a_key(users, max_budget=1)
    assert await store.admit(an_ask("a", key_hash=key, nanos=(0, -1))) == CallerRefused("model_not_priced")
    await passes(store, an_ask("a", nanos=(0, -1)))


async def test_a_hold_shrinks_to_what_a_keys_budget_has_left(store: Store, users: Users) -> None:
    await create(users, max_budget=1)
    key = await a_key(users, max_budget=1e-7)
    await passes(store, an_ask("a", key_hash=key, nanos=(5, 1_000)))
    assert (await user(users)).record.reserved_nanos == 100


# Their periods.


async def test_a_keys_period_ends_to_the_ms_and_is_not_its_users(store: Store, users: Users, clock: Clock) -> None:
    await create(users, max_budget=1, budget_duration="10s")
    key = await a_key(users, max_budget=1e-8, budget_duration="30s")
    await passes(store, an_ask("a", key_hash=key, nanos=10))
    await settle(store, "a", nanos=10)
    clock.advance(ms=29_999)
    decision = await refused(store, an_ask("b", key_hash=key, nanos=1))
    assert (decision.kind, decision.wait_ms, decision.limit.of_key) == ("stop", 1, True)
    clock.advance(ms=1)
    await passes(store, an_ask("b", key_hash=key, nanos=1))


async def test_a_keys_budget_without_a_duration_never_starts_again(store: Store, users: Users, clock: Clock) -> None:
    await create(users, max_budget=1, budget_duration="10s")
    key = await a_key(users, max_budget=1e-8)
    await passes(store, an_ask("a", key_hash=key, nanos=10))
    await settle(store, "a", nanos=10)
    clock.advance(seconds=100)
    decision = await refused(store, an_ask("b", key_hash=key, nanos=1))
    assert (decision.kind, decision.wait_ms) == ("stop", -1)


async def test_a_hold_of_an_ended_period_of_a_key_is_not_taken_from_the_next(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users)
    key = await a_key(users, max_budget=1, budget_duration="10s")
    await passes(store, an_ask("a", key_hash=key, nanos=10))
    clock.advance(seconds=10)
    await passes(store, an_ask("b", key_hash=key, nanos=3))
    await settle(store, "a", nanos=10)
    found = await user(users)
    assert (found.keys[0].spend_nanos, found.record.spend_nanos) == (0, 10)
    standing = (await passes(store, an_ask("c", key_hash=key, nanos=1))).standing
    assert standing.budget_used_nanos == 4


# What changes while requests are in flight.


async def test_a_key_without_limits_has_spend_too(store: Store, users: Users) -> None:
    await create(users)
    key, other = await a_key(users), await a_key(users)
    for request_id, key_hash in [("a", key), ("b", key), ("c", other), ("d", "")]:
        await passes(store, an_ask(request_id, key_hash=key_hash, nanos=9))
        await settle(store, request_id, nanos=7)
    found = await user(users)
    assert (sorted(row.spend_nanos for row in found.keys), found.record.spend_nanos) == ([7, 14], 28)


async def test_limits_added_while_a_key_is_in_use_begin_with_what_it_has_spent(store: Store, users: Users) -> None:
    await create(users)
    key = await a_key(users)
    await passes(store, an_ask("a", key_hash=key, nanos=10))
    await settle(store, "a", nanos=10)
    await passes(store, an_ask("b", key_hash=key, nanos=10))
    await change(users, max_budget=2.5e-8, max_parallel_requests=1)
    await settle(store, "b", nanos=10)
    assert (await user(users)).keys[0].spend_nanos == 20
    standing = (await passes(store, an_ask("c", key_hash=key, nanos=5))).standing
    assert (standing.budget_used_nanos, standing.parallel_used) == (25, 1)
    await settle(store, "c", nanos=5)
    assert (await refused(store, an_ask("d", key_hash=key, nanos=1))).kind == "stop"


async def test_limits_taken_away_hold_no_more_and_what_was_counted_is_there_when_they_come_back(
    store: Store, users: Users
) -> None:
    await create(users)
    limits = {"rpm_limit": 1, "tpm_limit": 10, "max_parallel_requests": 1, "max_budget": 1e-8, "budget_duration": "1d"}
    key = await a_key(users, **limits)
    await passes(store, an_ask("a", key_hash=key, tokens=10, nanos=10))
    record = await change(users, **dict.fromkeys(limits))
    assert (record.rpm_limit, record.max_budget_nanos, record.budget_reset_at_ms) == (None, None, None)
    standing = (await passes(store, an_ask("b", key_hash=key, tokens=10, nanos=10))).standing
    assert (standing.rpm_limit, standing.budget_limit_nanos) == (-1, -1)
    await settle(store, "a", tokens=10, nanos=10)
    await change(users, rpm_limit=2, max_parallel_requests=2, max_budget=1)
    decision = await refused(store, an_ask("c", key_hash=key, tokens=1))
    assert (decision.limit.name, decision.limit.used) == ("rpm", 2)
    assert (decision.standing.parallel_used, decision.standing.budget_used_nanos) == (1, 20)


async def test_the_spend_of_a_key_can_be_set(store: Store, users: Users) -> None:
    await create(users)
    key = await a_key(users, spend=3e-9)
    assert (await user(users)).keys[0].spend_nanos == 3
    assert (await change(users, spend=5e-9)).spend_nanos == 5
    assert (await change(users, max_budget=6e-9)).spend_nanos == 5
    await refused(store, an_ask("a", key_hash=key, nanos=2))
    assert (await change(users, spend=None)).spend_nanos == 0
    await passes(store, an_ask("a", key_hash=key, nanos=2))


async def test_a_key_made_anew_keeps_its_account_its_window_and_what_is_in_flight(store: Store, users: Users) -> None:
    await create(users)
    api_keys, old = ApiKeys(users), await mint(users, rpm_limit=3, max_budget=1, max_parallel_requests=2, models=["g*"])
    await passes(store, an_ask("a", key_hash=hash_key(old.secret), nanos=10))
    new = await api_keys.regenerate(old.record)
    assert await store.admit(an_ask("b", key_hash=hash_key(old.secret))) == CallerRefused("unknown_key")
    ask = an_ask("b", key_hash=hash_key(new.secret), nanos=10)
    standing = (await passes(store, ask)).standing
    assert (standing.rpm_used, standing.parallel_used, standing.budget_used_nanos) == (2, 2, 20)
    await settle(store, "a", nanos=7)
    assert (await api_keys.find(new.secret)).spend_nanos == 7
    with pytest.raises(NotFoundError):
        await api_keys.find(old.secret)
    decision = await store.admit(an_ask("c", key_hash=hash_key(new.secret), model="o1"))
    assert decision == CallerRefused("model_not_allowed")


@pytest.mark.parametrize("limits", [{}, {"max_budget": 1, "rpm_limit": 9}], ids=["without limits", "with limits"])
async def test_a_key_deleted_with_requests_in_flight_gives_its_users_hold_back(
    store: Store, users: Users, limits: dict[str, Any]
) -> None:
    await create(users, max_parallel_requests=2, max_budget=1, tpm_limit=100)
    minted = await mint(users, **limits)
    await passes(store, an_ask("a", key_hash=hash_key(minted.secret), tokens=50, nanos=10))
    await ApiKeys(users).delete([minted.record])
    other = await a_key(users, **limits)
    assert await settle(store, "a", tokens=20, nanos=4)
    found = await user(users)
    assert (found.record.spend_nanos, found.record.reserved_nanos, found.keys[0].spend_nanos) == (4, 0, 0)
    standing = (await passes(store, an_ask("b", key_hash=other, tokens=1))).standing
    assert (standing.tpm_used, standing.parallel_used) == (21, 1)


async def test_a_key_made_after_another_was_deleted_does_not_inherit_its_lists(store: Store, users: Users) -> None:
    await create(users)
    minted = await mint(users, models=["o1", "x*"], aliases={"fast": "o1"}, rpm_limit=1, budget_duration="1d")
    await passes(store, an_ask("a", key_hash=hash_key(minted.secret), model="o1"))
    await ApiKeys(users).delete([minted.record])
    key = await a_key(users, rpm_limit=5)
    standing = (await passes(store, an_ask("b", key_hash=key, model="fast"))).standing
    assert (standing.rpm_used, (await user(users)).keys[0].budget_reset_at_ms) == (1, None)


# Expired leases.


@pytest.mark.parametrize("limits", [{}, {"max_budget": 1, "tpm_limit": 99}], ids=["without limits", "with limits"])
async def test_p7_an_expired_lease_is_charged_to_its_key_and_a_late_settlement_corrects_that(
    store: Store, users: Users, clock: Clock, limits: dict[str, Any]
) -> None:
    await create(users)
    key = await a_key(users, **limits)
    await passes(store, an_ask("a", key_hash=key, tokens=50, nanos=10))
    clock.advance(ms=LEASE_MS)
    assert (await user(users)).keys[0].spend_nanos == 10
    assert await settle(store, "a", tokens=20, nanos=4)
    assert (await user(users)).keys[0].spend_nanos == 4
    await change(users, tpm_limit=99)
    standing = (await passes(store, an_ask("b", key_hash=key))).standing
    assert standing.tpm_used == (20 if limits else 0)


async def test_p7_an_expired_lease_frees_the_slot_of_its_key(store: Store, users: Users, clock: Clock) -> None:
    await create(users)
    key = await a_key(users, max_parallel_requests=1)
    await passes(store, an_ask("a", key_hash=key))
    clock.advance(ms=LEASE_MS - 1)
    await refused(store, an_ask("b", key_hash=key))
    clock.advance(ms=1)
    await passes(store, an_ask("b", key_hash=key))


# Deleted users.


async def test_what_a_deleted_user_had_in_flight_is_settled_in_the_books(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users)
    key = await a_key(users, max_budget=1)
    await passes(store, an_ask("a", key_hash=key, tokens=5, nanos=9))
    await passes(store, an_ask("b", key_hash=key, tokens=5, nanos=9))
    await settle(store, "b", tokens=3, nanos=2)
    await users.delete(["u"])
    assert await store.admit(an_ask("c", key_hash=key)) == CallerRefused("unknown_user")
    assert await books(users, clock) == [(2, 0, 8, 0, 11)]
    assert await settle(store, "a", tokens=4, nanos=1)
    assert not await settle(store, "a", tokens=4, nanos=1)
    assert await books(users, clock) == [(2, 0, 7, 0, 3)]


@pytest.mark.parametrize("expired", [False, True], ids=["in flight", "expired"])
@pytest.mark.parametrize("limits", [{}, {"max_budget": 1}], ids=["without limits", "with limits"])
async def test_a_late_settlement_of_a_deleted_user_concerns_nobody_of_that_name(
    store: Store, users: Users, clock: Clock, limits: dict[str, Any], expired: bool
) -> None:
    everything = {"tpm_limit": 99, "max_budget": 1, "max_parallel_requests": 9, "model_tpm_limit": {"*": 99}}
    await create(users, **everything)
    await passes(store, an_ask("a", key_hash=await a_key(users, **limits), tokens=50, nanos=10))
    if expired:
        clock.advance(ms=LEASE_MS)
        await user(users)
    await users.delete(["u"])
    clock.advance(seconds=2)
    await create(users, **everything)
    key = await a_key(users, **limits)
    await passes(store, an_ask("b", key_hash=key, tokens=1, nanos=1))
    assert await settle(store, "a", tokens=60, nanos=30)
    found = await user(users)
    assert (found.record.spend_nanos, found.record.reserved_nanos, found.keys[0].spend_nanos) == (0, 1, 0)
    standing = (await passes(store, an_ask("c", key_hash=key, tokens=1, nanos=1))).standing
    assert (standing.tpm_used, standing.model_tpm_used, standing.parallel_used) == (2, 2, 2)
    assert standing.budget_used_nanos == 2
    assert await books(users, clock) == [(1, 0, 60, 0, 30)]


async def test_a_late_failure_that_changes_nothing_else_is_in_the_books(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users)
    await passes(store, an_ask("a"))
    clock.advance(ms=LEASE_MS)
    await user(users)
    assert await books(users, clock) == [(1, 0, 0, 0, 0)]
    assert await send(store, Settlement(request_id="a", user_id="u", failed=True))
    assert await books(users, clock) == [(1, 1, 0, 0, 0)]


async def test_p8_a_change_of_a_key_binds_the_next_request(store: Store, users: Users) -> None:
    await create(users, rpm_limit=9)
    key = await a_key(users)
    await passes(store, an_ask("a", key_hash=key))
    await change(users, rpm_limit=0)
    assert (await refused(store, an_ask("b", key_hash=key))).limit.of_key
    await change(users, rpm_limit=5, blocked=True)
    assert await store.admit(an_ask("b", key_hash=key)) == CallerRefused("key_blocked")
    await change(users, blocked=False)
    await passes(store, an_ask("b", key_hash=key))
    await update(users, rpm_limit=2)
    assert not (await refused(store, an_ask("c", key_hash=key))).limit.of_key
