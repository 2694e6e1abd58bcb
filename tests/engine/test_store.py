from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from tests.backends import Clock, on_real_servers, on_valkey
from tests.engine.asking import USD, an_ask, create, mint, passes, refused, send, settle, update, user

from llmweir.decision import Admitted, Caller, CallerRefused, LimitRefused, Standing
from llmweir.engine import keys
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.asks import AliasOf, Settlement, SoftBudgetCrossed
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.link import Link
from llmweir.engine.store import Store
from llmweir.engine.users import Users

LEASE_MS = 30_000


@pytest.fixture
async def other(url: str, clock: Clock) -> AsyncIterator[Store]:
    """The store of another worker."""
    link = Link(url, timeout_ms=10_000)
    yield Store(link, clock=clock)
    await link.aclose()


async def reason(store: Store, **ask: object) -> str:
    decision = await store.admit(an_ask(**ask))  # type: ignore[arg-type]
    assert isinstance(decision, CallerRefused), decision
    return decision.reason


def ms(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp() * 1_000)  # type: ignore[arg-type, misc]


# Who may come in.


async def test_a_caller_without_a_record_is_unknown(store: Store) -> None:
    assert await reason(store, user_id="nobody") == "unknown_user"


async def test_a_key_is_valid_to_the_ms_of_its_expiry(store: Store, users: Users, clock: Clock) -> None:
    await create(users)
    key_hash = hash_key((await mint(users, duration="30s")).secret)
    clock.advance(ms=29_999)
    await passes(store, an_ask("a", key_hash=key_hash))
    clock.advance(ms=1)
    assert await reason(store, request_id="b", key_hash=key_hash) == "key_expired"


async def test_a_key_without_a_life_never_expires(store: Store, users: Users, clock: Clock) -> None:
    await create(users)
    key_hash = hash_key((await mint(users)).secret)
    clock.advance(seconds=100 * 365 * 86_400)
    await passes(store, an_ask(key_hash=key_hash))


async def test_a_key_that_the_record_does_not_list_is_unknown(store: Store, users: Users) -> None:
    await create(users)
    assert await reason(store, key_hash=hash_key("sk-other")) == "unknown_key"


async def test_a_blocked_key_is_refused(store: Store, users: Users) -> None:
    await create(users)
    minted = await mint(users)
    key_hash = hash_key(minted.secret)
    await ApiKeys(users).set_blocked(minted.record, True)
    assert await reason(store, key_hash=key_hash) == "key_blocked"


async def test_a_blocked_user_is_refused_from_the_next_request_on(store: Store, users: Users) -> None:
    await create(users)
    await passes(store, an_ask("a"))
    await update(users, blocked=True)
    assert await reason(store, request_id="b") == "user_blocked"
    await update(users, blocked=None)
    await passes(store, an_ask("b"))


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("proxy_admin", True),
        ("proxy_admin_viewer", True),
        ("internal_user", True),
        ("internal_user_viewer", False),
        ("team", True),
        ("customer", True),
    ],
)
@on_valkey
async def test_each_role_may_or_may_not_use_the_data_plane(store: Store, users: Users, role: str, may: bool) -> None:
    await create(users, user_role=role)
    decision = await store.admit(an_ask())
    assert isinstance(decision, Admitted) if may else decision == CallerRefused("role_not_allowed")


@on_valkey
async def test_authorise_says_who_it_is_and_counts_nothing(store: Store, users: Users) -> None:
    await create(users, user_alias="Al", rpm_limit=0, user_role="internal_user_viewer")
    caller = await store.authorise("u", "", data_plane=False)
    assert caller == Caller(user_id="u", user_alias="Al", user_role="internal_user_viewer")
    assert await store.authorise("u", "", data_plane=False) == caller
    assert await store.authorise("u", "", data_plane=True) == CallerRefused("role_not_allowed")
    assert await store.authorise("u", "none", data_plane=False) == CallerRefused("unknown_key")


# What they may ask for.


@pytest.mark.parametrize(
    ("allowed", "model", "may"),
    [
        ([], "anything", True),
        (["gpt-4o"], "gpt-4o", True),
        (["gpt-4o"], "gpt-4o-mini", False),
        (["gpt-*"], "gpt-4o", True),
        (["gpt-*"], "claude", False),
        (["claude", "gpt-4*"], "gpt-4", True),
        (["*"], "anything", True),
        (["modèle-*"], "modèle-1", True),
        (["no-default-models"], "gpt-4o", False),
        (["no-default-models", "gpt-4o"], "gpt-4o", True),
        (["gpt-4o"], "", True),
    ],
)
@on_valkey
async def test_the_allow_list_names_models_and_prefixes(
    store: Store, users: Users, allowed: list[str], model: str, may: bool
) -> None:
    await create(users, models=allowed)
    decision = await store.admit(an_ask(model=model))
    assert isinstance(decision, Admitted) if may else decision == CallerRefused("model_not_allowed")


async def test_an_alias_is_named_first_and_everything_sees_what_it_stands_for(store: Store, users: Users) -> None:
    await create(users, aliases={"fast": "gpt-4o"}, models=["gpt-4o"], model_rpm_limit={"gpt-4o": 1, "fast": 0})
    assert await store.admit(an_ask(model="fast")) == AliasOf("gpt-4o")
    standing = (await passes(store, an_ask(model="fast", target="gpt-4o"))).standing
    assert (standing.model_rpm_limit, standing.model_rpm_used) == (1, 1)
    await settle(store, nanos=5)
    assert (await user(users)).record.model_spend_nanos == {"gpt-4o": 5}


async def test_an_alias_that_changed_meaning_is_named_anew(store: Store, users: Users) -> None:
    await create(users, aliases={"fast": "gpt-4o"})
    await update(users, aliases={"fast": "claude"})
    assert await store.admit(an_ask(model="fast", target="gpt-4o")) == AliasOf("claude")
    await update(users, aliases=None)
    assert await store.admit(an_ask(model="fast", target="claude")) == AliasOf("fast")


@pytest.mark.parametrize(
    ("allowed", "sent", "may"),
    [
        ([], "no-cache", True),
        (["no-cache"], "", True),
        (["no-cache"], "no-cache", True),
        (["no-cache", "ttl"], "ttl\nno-cache", True),
        (["no-cache"], "no-cache\nttl", False),
    ],
)
@on_valkey
async def test_only_listed_cache_controls_may_be_sent(
    store: Store, users: Users, allowed: list[str], sent: str, may: bool
) -> None:
    await create(users, allowed_cache_controls=allowed)
    decision = await store.admit(an_ask(cache_controls=sent))
    assert isinstance(decision, Admitted) if may else decision == CallerRefused("cache_control_not_allowed")


@pytest.mark.parametrize(
    ("fields", "refused"),
    [({}, False), ({"max_budget": 1}, True), ({"model_max_budget": {"gpt-*": 1}}, True), ({"soft_budget": 1}, False)],
    ids=["no budget", "a budget", "a budget of the model", "only a soft budget"],
)
@on_valkey
async def test_a_model_without_a_price_is_refused_where_there_is_a_budget(
    store: Store, users: Users, fields: dict[str, object], refused: bool
) -> None:
    await create(users, **fields)
    decision = await store.admit(an_ask(nanos=(0, -1)))
    assert decision == CallerRefused("model_not_priced") if refused else isinstance(decision, Admitted)


# Limits of a model.


@pytest.mark.parametrize(
    ("entries", "model", "limit"),
    [
        ({"gpt-4o": 3, "gpt-*": 5}, "gpt-4o", 3),
        ({"gpt-4o": 3, "gpt-*": 5}, "gpt-4o-mini", 5),
        ({"g*": 7, "gpt-4*": 3, "gpt-*": 5}, "gpt-4o", 3),
        ({"g*": 7, "gpt-4*": 3, "gpt-*": 5}, "gpt-3", 5),
        ({"g*": 7, "gpt-4*": 3, "gpt-*": 5}, "gemini", 7),
        ({"g*": 7, "*": 9}, "claude", 9),
        ({"gpt-4o*": 7}, "gpt-4o", 7),
        ({"gpt-4o*": 7}, "gpt-4", -1),
        ({"é*": 7, "éa*": 8}, "éab", 8),
    ],
)
@on_valkey
async def test_the_longest_entry_holds_for_a_model(
    store: Store, users: Users, entries: dict[str, int], model: str, limit: int
) -> None:
    await create(users, model_rpm_limit=entries, model_tpm_limit=entries, model_max_budget=entries)
    standing = (await passes(store, an_ask(model=model))).standing
    assert standing.model_rpm_limit == standing.model_tpm_limit == limit
    assert standing.model_budget_limit_nanos == (limit * USD if limit > 0 else -1)


async def test_a_models_limit_holds_on_top_of_the_users_own(store: Store, users: Users) -> None:
    await create(users, rpm_limit=3, model_rpm_limit={"gpt-4o": 1})
    await passes(store, an_ask("a"))
    decision = await refused(store, an_ask("b"))
    assert (decision.limit.name, decision.limit.model, decision.limit.used) == ("model_rpm", "gpt-4o", 1)
    await passes(store, an_ask("c", model="claude"))
    await passes(store, an_ask("d", model="claude"))
    assert (await refused(store, an_ask("e", model="claude"))).limit.name == "rpm"


async def test_models_under_one_prefix_share_its_limit(store: Store, users: Users) -> None:
    await create(users, model_tpm_limit={"gpt-*": 100})
    await passes(store, an_ask("a", tokens=60))
    decision = await refused(store, an_ask("b", model="gpt-3", tokens=60))
    assert (decision.limit.name, decision.limit.model, decision.limit.used) == ("model_tpm", "gpt-*", 60)


@pytest.mark.parametrize(
    "budget", [2, {"max_budget": 2}, {"budget_limit": 2}, {"max_budget": 2, "budget_duration": "30d"}]
)
@on_valkey
async def test_a_models_budget_may_be_a_number_or_an_object(store: Store, users: Users, budget: object) -> None:
    await create(users, model_max_budget={"gpt-4o": budget})
    await passes(store, an_ask("a", nanos=2 * USD))
    await settle(store, "a", nanos=2 * USD)
    decision = await refused(store, an_ask("b", nanos=1))
    assert (decision.limit.name, decision.kind, decision.limit.limit) == ("model_budget", "stop", 2 * USD)


# Periods.


async def test_a_models_budget_with_a_duration_of_its_own_starts_again_by_itself(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users, model_max_budget={"gpt-4o": {"max_budget": 1, "time_period": "45s"}}, budget_duration="1h")
    await passes(store, an_ask("a", nanos=USD))
    await settle(store, "a", nanos=USD)
    clock.advance(ms=44_999)
    decision = await refused(store, an_ask("b", nanos=1))
    assert (decision.kind, decision.wait_ms, decision.limit.reset_ms) == ("stop", 1, 1)
    clock.advance(ms=1)
    standing = (await passes(store, an_ask("b", nanos=1))).standing
    assert (standing.model_budget_used_nanos, standing.model_budget_reset_ms) == (1, 45_000)
    assert standing.budget_used_nanos == USD + 1


async def test_a_models_budget_without_a_duration_follows_the_users_period(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users, model_max_budget={"gpt-4o": 1}, budget_duration="1h")
    await passes(store, an_ask("a", nanos=USD))
    await settle(store, "a", nanos=USD)
    assert (await refused(store, an_ask("b", nanos=1))).wait_ms == 3_600_000
    clock.advance(seconds=3_600)
    await passes(store, an_ask("b", nanos=1))


@pytest.mark.parametrize(
    ("duration", "length_ms"), [("30s", 30_000), ("90m", 5_400_000), ("30h", 108_000_000), ("2w", 1_209_600_000)]
)
@on_valkey
async def test_a_period_ends_to_the_ms(store: Store, users: Users, clock: Clock, duration: str, length_ms: int) -> None:
    clock.advance(ms=123)
    await create(users, max_budget=1, budget_duration=duration)
    await passes(store, an_ask("a", nanos=USD))
    await settle(store, "a", nanos=USD)
    clock.advance(ms=length_ms - 1)
    assert (await refused(store, an_ask("b", nanos=1))).wait_ms == 1
    clock.advance(ms=1)
    await passes(store, an_ask("b", nanos=1))


@on_real_servers
async def test_a_month_is_clamped_to_the_last_day_and_the_31st_comes_back(users: Users, clock: Clock) -> None:
    clock.now_ms = ms(2026, 1, 31, 12)
    await create(users, budget_duration="1mo")
    ends = []
    for _ in range(4):
        ends.append((await user(users)).record.budget_reset_at_ms)
        clock.now_ms = ends[-1] or 0
    assert ends == [ms(2026, 2, 28, 12), ms(2026, 3, 31, 12), ms(2026, 4, 30, 12), ms(2026, 5, 31, 12)]


async def test_periods_nobody_touched_are_passed_over(store: Store, users: Users, clock: Clock) -> None:
    await create(users, max_budget=1, budget_duration="30s")
    clock.advance(ms=30_000 * 5 + 1)
    assert (await passes(store, an_ask(nanos=1))).standing.budget_reset_ms == 29_999


async def test_a_hold_of_an_ended_period_is_not_taken_from_the_next(store: Store, users: Users, clock: Clock) -> None:
    await create(users, max_budget=1, model_max_budget={"gpt-4o": 1}, budget_duration="20s")
    await passes(store, an_ask("old", nanos=USD))
    clock.advance(seconds=20)
    standing = (await passes(store, an_ask("new", nanos=USD))).standing
    assert standing.budget_used_nanos == standing.model_budget_used_nanos == USD
    await settle(store, "old", nanos=USD)
    record = (await user(users)).record
    assert (record.spend_nanos, record.reserved_nanos, record.model_spend_nanos) == (0, USD, {})


# Budgets.


async def test_a_hold_in_flight_is_a_wait_and_spend_is_a_stop(store: Store, users: Users) -> None:
    await create(users, max_budget=1)
    await passes(store, an_ask("a", nanos=USD))
    decision = await refused(store, an_ask("b", nanos=1))
    assert (decision.kind, decision.wait_ms, decision.limit.used) == ("wait", 2_000, USD)
    await settle(store, "a", nanos=USD)
    decision = await refused(store, an_ask("b", nanos=1))
    assert (decision.kind, decision.wait_ms, decision.limit.reset_ms) == ("stop", -1, None)


async def test_a_request_larger_than_the_budget_itself_can_never_fit(store: Store, users: Users) -> None:
    await create(users, max_budget_nanos=100)
    decision = await refused(store, an_ask(nanos=101))
    assert (decision.limit.name, decision.kind, decision.limit.asked) == ("budget", "never", 101)


async def test_a_budget_of_zero_stops_what_costs_and_nothing_else(store: Store, users: Users) -> None:
    await create(users, max_budget=0)
    assert (await refused(store, an_ask("a", nanos=(0, 1)))).kind == "stop"
    await passes(store, an_ask("b", nanos=0))


async def test_a_hold_shrinks_to_what_spending_has_left_but_not_below_what_is_asked(store: Store, users: Users) -> None:
    await create(users, max_budget_nanos=100, tpm_limit=50)
    standing = (await passes(store, an_ask("a", tokens=(10, 900), nanos=(60, 900)))).standing
    assert (standing.tpm_used, standing.budget_used_nanos) == (50, 100)
    await settle(store, "a", nanos=60)
    decision = await refused(store, an_ask("b", nanos=(41, 900)))
    assert (decision.kind, decision.limit.asked) == ("stop", 41)
    await passes(store, an_ask("c", nanos=(40, 900)))


async def test_p4_a_debt_of_tokens_blocks_until_it_has_left_the_window(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users, tpm_limit=100)
    await passes(store, an_ask("a", tokens=10))
    await settle(store, "a", tokens=700)
    decision = await refused(store, an_ask("b", tokens=1))
    assert (decision.kind, decision.limit.used) == ("wait", 700)
    clock.advance(ms=decision.wait_ms - 1)
    await refused(store, an_ask("b", tokens=1))
    clock.advance(ms=1)
    await passes(store, an_ask("b", tokens=1))


async def test_p4_a_debt_of_money_blocks_until_the_budget_has_room_again(store: Store, users: Users) -> None:
    await create(users, max_budget_nanos=100)
    await passes(store, an_ask("a", nanos=10))
    await settle(store, "a", nanos=250)
    decision = await refused(store, an_ask("b", nanos=1))
    assert (decision.kind, decision.limit.used) == ("stop", 250)
    await update(users, max_budget_nanos=250)
    await refused(store, an_ask("b", nanos=1))
    await update(users, max_budget_nanos=251)
    await passes(store, an_ask("b", nanos=1))


async def test_a_soft_budget_is_crossed_once_a_period_and_refuses_nothing(
    store: Store, users: Users, clock: Clock
) -> None:
    crossed: list[SoftBudgetCrossed] = []
    store.tell_soft_budgets(crossed.append)
    await create(users, soft_budget_nanos=100, budget_duration="1h")
    for name, nanos in [("a", 99), ("b", 1), ("c", 500)]:
        await passes(store, an_ask(name, nanos=nanos))
        await settle(store, name, nanos=nanos)
    assert crossed == [SoftBudgetCrossed("u", 100, 100)]
    clock.advance(seconds=3_600)
    await passes(store, an_ask("d", nanos=100))
    await settle(store, "d", nanos=100)
    assert crossed == [SoftBudgetCrossed("u", 100, 100)] * 2


async def test_a_new_soft_budget_is_crossed_anew(store: Store, users: Users) -> None:
    crossed: list[SoftBudgetCrossed] = []
    store.tell_soft_budgets(crossed.append)
    await create(users, soft_budget_nanos=1)
    for name, soft_budget_nanos in [("a", 15), ("b", 25)]:
        await passes(store, an_ask(name, nanos=10))
        await settle(store, name, nanos=10)
        await update(users, soft_budget_nanos=soft_budget_nanos)
    assert [each.spend_nanos for each in crossed] == [10, 20]


# Windows and slots.


@pytest.mark.parametrize("field", ["rpm_limit", "max_parallel_requests"])
async def test_a_limit_of_zero_lets_nothing_through_ever(store: Store, users: Users, field: str) -> None:
    await create(users, **{field: 0})
    decision = await refused(store, an_ask())
    assert (decision.kind, decision.wait_ms, decision.limit.reset_ms) == ("never", -1, None)


async def test_tokens_and_money_of_a_failed_request_come_back_and_the_request_stays_counted(
    store: Store, users: Users
) -> None:
    await create(users, rpm_limit=9, tpm_limit=100, max_budget_nanos=100)
    await passes(store, an_ask("a", tokens=100, nanos=100))
    await send(store, Settlement(request_id="a", user_id="u", failed=True))
    standing = (await passes(store, an_ask("b", tokens=1, nanos=1))).standing
    assert (standing.rpm_used, standing.tpm_used, standing.budget_used_nanos) == (2, 1, 1)


async def test_a_cancelled_request_was_never_counted(store: Store, users: Users) -> None:
    await create(users, rpm_limit=1, max_parallel_requests=1, model_rpm_limit={"*": 1})
    await passes(store, an_ask("a", tokens=100, nanos=100))
    await send(store, Settlement(request_id="a", user_id="u", cancelled=True))
    standing = (await passes(store, an_ask("b", tokens=1, nanos=1))).standing
    assert (standing.rpm_used, standing.model_rpm_used, standing.tpm_used, standing.budget_used_nanos) == (1, 1, 1, 1)


async def test_a_slot_is_free_as_soon_as_its_request_is_settled(store: Store, users: Users) -> None:
    await create(users, max_parallel_requests=1)
    for name in "abc":
        admitted = await passes(store, an_ask(name))
        assert (admitted.standing.parallel_limit, admitted.standing.parallel_used) == (1, 1)
        decision = await refused(store, an_ask(name + name))
        assert (decision.limit.name, decision.kind, decision.wait_ms) == ("parallel", "wait", 1_000)
        store.settle(Settlement(request_id=name, user_id="u"))


async def test_the_worst_of_several_limits_is_the_one_named(store: Store, users: Users, clock: Clock) -> None:
    await create(users, rpm_limit=1, max_parallel_requests=1, max_budget_nanos=100, budget_duration="1d")
    await passes(store, an_ask("a", nanos=100))
    clock.advance(seconds=20)
    assert (await refused(store, an_ask("b", nanos=1))).limit.name == "rpm"  # waits longest
    await settle(store, "a", nanos=100)
    assert (await refused(store, an_ask("b", nanos=1))).limit.name == "budget"  # a stop
    await update(users, tpm_limit=1)
    assert (await refused(store, an_ask("b", nanos=1, tokens=2))).limit.name == "tpm"  # never


async def test_of_two_spent_budgets_the_one_that_never_starts_again_is_named(store: Store, users: Users) -> None:
    await create(users, max_budget_nanos=9, model_max_budget={"gpt-4o": {"max_budget": 9e-9, "time_period": "1h"}})
    await passes(store, an_ask("a", nanos=9))
    await settle(store, "a", nanos=9)
    decision = await refused(store, an_ask("b", nanos=1))
    assert (decision.limit.name, decision.wait_ms) == ("budget", -1)


async def test_where_no_limit_is_set_none_is_shown(store: Store, users: Users) -> None:
    await create(users)
    standing = (await passes(store, an_ask(tokens=5, nanos=7))).standing
    shown = {name: getattr(standing, name) for name in Standing.__struct_fields__ if "limit" in name}
    assert set(shown.values()) == {-1}
    assert (standing.budget_reset_ms, standing.model_budget_reset_ms) == (-1, -1)


# A clock that runs back.


async def test_the_window_waits_for_a_clock_that_ran_back_a_little(store: Store, users: Users, clock: Clock) -> None:
    await create(users, rpm_limit=1)
    await passes(store, an_ask("a"))
    clock.advance(seconds=-5)
    decision = await refused(store, an_ask("b"))
    assert decision.wait_ms == 66_000
    clock.advance(ms=decision.wait_ms)
    await passes(store, an_ask("b"))


async def test_a_clock_set_back_by_an_hour_keeps_a_caller_out_for_a_minute_at_most(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users, rpm_limit=1)
    await passes(store, an_ask("a"))
    clock.advance(seconds=-3_600)
    decision = await refused(store, an_ask("b"))
    assert decision.wait_ms <= 61_000
    clock.advance(ms=decision.wait_ms)
    await passes(store, an_ask("b"))


async def test_a_models_tokens_are_settled_where_they_were_held_though_the_clock_ran_back(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users, model_tpm_limit={"gpt-4o": 100})
    await passes(store, an_ask("a", model="claude"))
    clock.advance(seconds=-5)
    await passes(store, an_ask("b", tokens=100))
    await settle(store, "b", tokens=10)
    assert (await passes(store, an_ask("c", tokens=90))).standing.model_tpm_used == 100


async def test_p7_a_lease_taken_after_the_clock_ran_back_expires_in_time(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users, max_parallel_requests=2)
    await passes(store, an_ask("a"))
    clock.advance(seconds=-20)
    await passes(store, an_ask("b"))
    clock.advance(ms=LEASE_MS)
    assert (await passes(store, an_ask("c"))).standing.parallel_used == 2


# Profiles.


async def test_the_profile_comes_with_the_admission(store: Store, users: Users) -> None:
    await create(
        users,
        user_alias="Al",
        user_role="team",
        teams=["t"],
        metadata={"a": [1]},
        guardrails=["g"],
        permissions={"p": 1},
    )
    expected = Caller(
        user_id="u",
        user_alias="Al",
        user_role="team",
        teams=("t",),
        metadata={"a": [1]},
        guardrails=("g",),
        permissions={"p": 1},
    )
    for name in "ab":
        assert (await passes(store, an_ask(name))).profile == expected
    assert store.name_of("u", "") == "Al"
    assert store.name_of("nobody", "") == "nobody"


async def test_p8_a_change_binds_the_next_request_on_every_worker(store: Store, other: Store, users: Users) -> None:
    await create(users, user_alias="before", rpm_limit=100)
    for worker in (store, other):
        assert (await passes(worker, an_ask(f"a{id(worker)}"))).profile.user_alias == "before"
    await update(users, user_alias="after", rpm_limit=3)
    for used, worker in enumerate((store, other), 3):
        decision = await worker.admit(an_ask(f"b{id(worker)}"))
        assert isinstance(decision, Admitted if used == 3 else LimitRefused)
        assert decision.standing.rpm_limit == 3
    await update(users, rpm_limit=None)
    assert (await passes(other, an_ask("c"))).profile.user_alias == "after"


async def test_the_last_known_meaning_of_an_alias_is_remembered(store: Store, users: Users) -> None:
    await create(users, aliases={"fast": "gpt-4o"})
    assert store.alias_target("u", "", "fast") == "fast"
    await store.admit(an_ask(model="fast"))
    assert store.alias_target("u", "", "fast") == "gpt-4o"


# Leases.


async def test_p7_a_lease_that_expires_frees_its_slot_and_is_charged_as_reserved(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users, max_parallel_requests=1, max_budget_nanos=100, tpm_limit=1_000)
    await passes(store, an_ask("a", tokens=10, nanos=60))
    clock.advance(ms=LEASE_MS - 1)
    await refused(store, an_ask("b"))
    clock.advance(ms=1)
    standing = (await passes(store, an_ask("b"))).standing
    assert (standing.parallel_used, standing.tpm_used, standing.budget_used_nanos) == (1, 10, 60)
    record = (await user(users)).record
    assert (record.spend_nanos, record.reserved_nanos, record.model_spend_nanos) == (60, 0, {"gpt-4o": 60})


@pytest.mark.parametrize(("tokens", "nanos"), [(3, 20), (10, 60), (40, 99)], ids=["less", "equal", "more"])
@on_real_servers
async def test_p7_a_late_settlement_corrects_what_was_charged(
    store: Store, users: Users, clock: Clock, tokens: int, nanos: int
) -> None:
    await create(users, max_budget_nanos=100)
    await passes(store, an_ask("a", tokens=10, nanos=60))
    clock.advance(ms=LEASE_MS)
    assert (await user(users)).record.spend_nanos == 60
    assert await settle(store, "a", tokens=tokens, nanos=nanos)
    assert not await settle(store, "a", tokens=tokens, nanos=nanos)
    record = (await user(users)).record
    assert (record.spend_nanos, record.reserved_nanos, record.model_spend_nanos) == (nanos, 0, {"gpt-4o": nanos})
    assert (await passes(store, an_ask("b", nanos=1))).standing.tpm_used == tokens


async def test_p7_reading_a_user_takes_account_of_expired_leases(store: Store, users: Users, clock: Clock) -> None:
    await create(users)
    await passes(store, an_ask("a", nanos=60))
    assert (await user(users)).record.reserved_nanos == 60
    clock.advance(ms=LEASE_MS)
    record = (await user(users)).record
    assert (record.spend_nanos, record.reserved_nanos) == (60, 0)


async def test_p7_a_renewed_lease_stays_for_as_long_as_it_is_renewed(
    store: Store, other: Store, users: Users, clock: Clock
) -> None:
    await create(users, max_parallel_requests=2)
    await passes(store, an_ask("a"))
    await passes(other, an_ask("of a worker that crashed"))
    for _ in range(3):
        clock.advance(ms=LEASE_MS - 10_000)
        await store.renew(older_than_s=-1.0)
    decision = await passes(store, an_ask("b"))
    assert decision.standing.parallel_used == 2
    await refused(store, an_ask("c"))


async def test_only_requests_in_flight_that_are_old_enough_are_renewed(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users, max_parallel_requests=1)
    await passes(store, an_ask("a"))
    clock.advance(ms=LEASE_MS - 1)
    await store.renew(older_than_s=3_600.0)
    clock.advance(ms=1)
    await passes(store, an_ask("b"))
    await settle(store, "b")
    await store.renew(older_than_s=-1.0)
    await passes(store, an_ask("c"))


# Exactly once.


async def test_p6_an_admission_sent_twice_counts_once(store: Store, users: Users) -> None:
    await create(users, rpm_limit=1, max_parallel_requests=1, tpm_limit=10, max_budget_nanos=10)
    first = await passes(store, an_ask("a", tokens=10, nanos=10))
    assert (await passes(store, an_ask("a", tokens=10, nanos=10))).standing == first.standing
    await settle(store, "a", tokens=1, nanos=1)
    record = (await user(users)).record
    assert (record.spend_nanos, record.reserved_nanos) == (1, 0)


async def test_p6_a_settlement_sent_twice_counts_once(store: Store, users: Users) -> None:
    await create(users)
    await passes(store, an_ask("a", tokens=10, nanos=10))
    assert await settle(store, "a", tokens=30, nanos=30)
    assert not await settle(store, "a", tokens=30, nanos=30)
    assert (await user(users)).record.spend_nanos == 30
    assert (await passes(store, an_ask("b"))).standing.tpm_used == 30


async def test_p6_a_settlement_of_what_was_never_admitted_changes_nothing(store: Store, users: Users) -> None:
    await create(users)
    assert not await settle(store, "never", tokens=30, nanos=30)
    assert (await user(users)).record.spend_nanos == 0


# Keys and scripts.


async def test_the_owner_of_a_key_is_asked_for_once(store: Store, users: Users, link: Link) -> None:
    await create(users)
    key_hash = hash_key((await mint(users)).secret)
    assert await store.owner_of(key_hash) == "u"
    await link.call("DEL", keys.api_key(key_hash))
    assert await store.owner_of(key_hash) == "u"
    assert await store.owner_of(key_hash, afresh=True) is None
    assert await store.owner_of(key_hash) is None


async def test_an_unknown_key_is_remembered_for_a_second(
    store: Store, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("llmweir.engine.store.time.monotonic", lambda: now_s[0])
    await create(users)
    assert await store.owner_of(hash_key("sk-mine-0123456789")) is None
    await mint(users, key="sk-mine-0123456789")
    now_s[0] += 0.9
    assert await store.owner_of(hash_key("sk-mine-0123456789")) is None
    now_s[0] += 0.2
    assert await store.owner_of(hash_key("sk-mine-0123456789")) == "u"


@on_real_servers
async def test_a_flushed_script_cache_heals_itself(store: Store, users: Users, link: Link) -> None:
    await create(users)
    await link.call("SCRIPT", "FLUSH")
    await passes(store, an_ask("a", nanos=5))
    await link.call("SCRIPT", "FLUSH")
    store.settle(Settlement(request_id="a", user_id="u", cost_nanos=5))
    while (await user(users)).record.spend_nanos != 5:  # noqa: ASYNC110 (nothing tells)
        await asyncio.sleep(0)
    assert (await user(users)).record.reserved_nanos == 0


@on_valkey
async def test_p1_an_admission_is_one_command_and_a_settlement_is_one_more(
    store: Store, users: Users, link: Link
) -> None:
    await create(users, rpm_limit=9, tpm_limit=9, max_budget=1, max_parallel_requests=9, model_rpm_limit={"*": 9})
    await passes(store, an_ask("warm"))
    await link.call("CONFIG", "RESETSTAT")
    await passes(store, an_ask("a", tokens=1, nanos=1))
    await settle(store, "a", tokens=1, nanos=1)
    stats = await link.call("INFO", "stats")
    commands = await link.call("INFO", "commandstats")
    assert isinstance(stats, bytes)
    assert isinstance(commands, bytes)
    assert b"cmdstat_evalsha:calls=2," in commands
    assert b"cmdstat_get:" not in commands
