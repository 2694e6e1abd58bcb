from __future__ import annotations

import asyncio
import hashlib

import pytest
from tests.backends import Clock, on_real_servers
from tests.engine.asking import USD, an_ask, create, mint, passes, refused, settle, update, user

from llmweir.engine import keys
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.link import Link
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.errors import ConflictError, NotFoundError
from llmweir.records import parse_new, parse_update

EVERYTHING: dict[str, object] = {
    "user_email": "Al@example.com",
    "user_alias": "Al",
    "teams": ["a", "b"],
    "user_role": "customer",
    "max_budget": 0.1,
    "budget_duration": "30d",
    "models": ["gpt-*"],
    "tpm_limit": 2,
    "rpm_limit": 3,
    "max_parallel_requests": 4,
    "model_rpm_limit": {"gpt-4o": 5},
    "model_tpm_limit": {"gpt-4o": 6},
    "model_max_budget": {"gpt-4o": 7, "gpt-*": {"budget_limit": 8, "time_period": "1mo"}},
    "soft_budget": 0.05,
    "aliases": {"fast": "gpt-4o"},
    "allowed_cache_controls": ["ttl"],
    "blocked": True,
    "guardrails": ["g"],
    "permissions": {"p": True},
    "metadata": {"m": [1, None]},
    "config": {"c": 1},
}


async def test_a_user_reads_back_as_it_was_made(users: Users, clock: Clock) -> None:
    assert await create(users, **EVERYTHING) == "u"
    record = (await user(users)).record
    in_nanos = {"max_budget": record.max_budget_nanos, "soft_budget": record.soft_budget_nanos}
    assert in_nanos == {"max_budget": USD // 10, "soft_budget": USD // 20}
    for name in EVERYTHING.keys() - in_nanos.keys():
        value = getattr(record, name)
        assert (list(value) if isinstance(value, tuple) else value) == EVERYTHING[name], name
    assert (record.created_at_ms, record.updated_at_ms) == (clock(), clock())
    assert record.budget_reset_at_ms == clock() + 30 * 86_400_000
    assert (record.spend_nanos, record.reserved_nanos, record.model_spend_nanos) == (0, 0, {})


async def test_a_user_without_an_id_gets_one(users: Users) -> None:
    user_id = await users.create(parse_new(b"{}"))
    assert len(user_id) == 36
    assert (await user(users, user_id)).record.user_role == "internal_user"


async def test_an_id_is_given_once(users: Users) -> None:
    await create(users, user_alias="first")
    with pytest.raises(ConflictError) as conflict:
        await create(users, user_alias="second")
    assert conflict.value.param == "user_id"
    assert (await user(users)).record.user_alias == "first"


async def test_ids_that_look_like_keys_stay_apart(users: Users, store: Store) -> None:
    names = ["a", "a}", "a:use", "{u:a}", "a%7D", "ä", " ", "*"]
    for name in names:
        await create(users, name, user_alias=f"is {name}")
        await passes(store, an_ask(user_id=name, nanos=5))
    for name in names:
        record = (await user(users, name)).record
        assert (record.user_alias, record.reserved_nanos) == (f"is {name}", 5)


async def test_an_unknown_user_is_none_and_cannot_be_updated(users: Users) -> None:
    assert await users.get("u") is None
    with pytest.raises(NotFoundError) as missing:
        await update(users, rpm_limit=1)
    assert missing.value.param == "user_id"
    with pytest.raises(NotFoundError) as missing:
        await users.update(parse_update(b'{"user_email": "a@b.c"}'))
    assert missing.value.param == "user_email"
    assert await users.get("u") is None


# Updates.


@pytest.mark.parametrize("name", sorted(EVERYTHING.keys() - {"user_email"}))
@on_real_servers
async def test_a_field_not_sent_stays_and_null_clears_it(users: Users, name: str) -> None:
    await create(users, **EVERYTHING)
    before = (await user(users)).record
    await update(users, **{name: None})
    after, fresh = (await user(users)).record, "fresh"
    await create(users, fresh)
    cleared = (await user(users, fresh)).record
    attribute = f"{name}_nanos" if name in ("max_budget", "soft_budget") else name
    assert getattr(after, attribute) == getattr(cleared, attribute) != getattr(before, attribute)
    touched = {attribute, "updated_at_ms", *(["budget_reset_at_ms"] if name == "budget_duration" else [])}
    for other in set(before.__struct_fields__) - touched:
        assert getattr(after, other) == getattr(before, other), other


async def test_an_update_says_when_it_was_made(users: Users, clock: Clock) -> None:
    await create(users)
    clock.advance(seconds=5)
    await update(users, rpm_limit=1)
    record = (await user(users)).record
    assert record.updated_at_ms - record.created_at_ms == 5_000


async def test_a_team_id_joins_the_teams(users: Users) -> None:
    await create(users, teams=["a"])
    await update(users, team_id="b")
    await update(users, team_id="b")
    record = (await user(users)).record
    assert (record.teams, record.team_id) == (("a", "b"), "b")
    await create(users, "v", team_id="c")
    assert (await user(users, "v")).record.teams == ("c",)


async def test_a_password_is_kept_only_as_its_hash(users: Users, link: Link) -> None:
    body = parse_new(b'{"user_id": "u", "password": "correct horse"}')
    await users.create(body, password_hash="scrypt$...")
    assert (await user(users)).record.has_password
    stored = await link.call("HVALS", keys.user_keys("u").doc)
    assert isinstance(stored, list)
    assert b"scrypt$..." in stored
    assert not any(b"horse" in value for value in stored if isinstance(value, bytes))


# Email addresses.


async def test_an_email_is_unique_whatever_its_case(users: Users) -> None:
    await create(users, "a", user_email="Al@Example.com")
    with pytest.raises(ConflictError) as conflict:
        await create(users, "b", user_email="aL@example.COM")
    assert conflict.value.param == "user_email"
    assert await users.get("b") is None
    await create(users, "b")
    with pytest.raises(ConflictError):
        await update(users, "b", user_email="al@example.com", rpm_limit=1)
    assert (await user(users, "b")).record.rpm_limit is None


async def test_a_user_is_found_by_email_in_any_case_and_keeps_the_case_it_came_in(users: Users) -> None:
    await create(users, user_email="Al@Example.com")
    assert await users.id_of_email("AL@EXAMPLE.COM") == "u"
    await users.update(parse_update(b'{"user_email": "al@example.com", "rpm_limit": 5}'))
    record = (await user(users)).record
    assert (record.user_email, record.rpm_limit) == ("Al@Example.com", 5)


async def test_an_email_given_up_is_free_again(users: Users) -> None:
    await create(users, "a", user_email="one@example.com")
    await update(users, "a", user_email="two@example.com")
    assert await users.id_of_email("one@example.com") is None
    await create(users, "b", user_email="one@example.com")
    assert await users.id_of_email("one@example.com") == "b"
    await update(users, "b", user_email=None)
    await update(users, "a", user_email="one@example.com")
    assert await users.id_of_email("one@example.com") == "a"


async def test_a_claim_that_no_user_confirms_is_worth_nothing(users: Users, link: Link) -> None:
    await link.call("SET", keys.email("al@example.com"), "crashed before the record was written")
    await create(users, user_email="al@example.com")
    assert await users.id_of_email("al@example.com") == "u"


@on_real_servers
async def test_of_many_who_claim_an_email_at_once_one_gets_it(users: Users) -> None:
    claims = [create(users, f"u{number}", user_email="al@example.com") for number in range(8)]
    results = await asyncio.gather(*claims, return_exceptions=True)
    won = [result for result in results if isinstance(result, str)]
    assert len(won) == 1
    assert await users.id_of_email("al@example.com") == won[0]


# API keys.


async def test_a_minted_key_is_shown_once_and_kept_as_its_hash(users: Users, store: Store, clock: Clock) -> None:
    await create(users)
    minted = await mint(users, key_alias="laptop", duration="1h")
    assert minted.secret.startswith("sk-")
    assert len(minted.secret) >= 3 + 22
    assert (await user(users)).keys == (minted.record,)
    assert minted.record.token == hashlib.sha256(minted.secret.encode()).hexdigest()
    assert (minted.record.key_name, minted.record.key_alias) == (f"sk-...{minted.secret[-4:]}", "laptop")
    assert (minted.record.created_at_ms, minted.record.expires_at_ms) == (clock(), clock() + 3_600_000)
    assert await store.owner_of(hash_key(minted.secret)) == "u"
    assert len(hash_key(minted.secret)) == 43


async def test_a_key_exists_once_and_only_for_a_user(users: Users, store: Store) -> None:
    await create(users)
    with pytest.raises(NotFoundError):
        await mint(users, "nobody", key="sk-mine-0123456789")
    await mint(users, key="sk-mine-0123456789")
    with pytest.raises(ConflictError):
        await mint(users, key="sk-mine-0123456789")
    assert len((await user(users)).keys) == 1


async def test_keys_are_listed_oldest_first(users: Users, clock: Clock) -> None:
    await create(users)
    for alias in ("first", "second", "third"):
        await mint(users, key_alias=alias)
        clock.advance(ms=1)
    assert [row.key_alias for row in (await user(users)).keys] == ["first", "second", "third"]


# What is counted stays counted.


async def test_changing_a_limit_keeps_what_is_counted(users: Users, store: Store) -> None:
    await create(users, rpm_limit=5, tpm_limit=100, max_parallel_requests=5, max_budget=1, model_rpm_limit={"*": 5})
    await passes(store, an_ask("a", tokens=60, nanos=USD // 2))
    await update(users, rpm_limit=9, tpm_limit=90, max_parallel_requests=9, max_budget=2, model_rpm_limit={"*": 9})
    standing = (await passes(store, an_ask("b", tokens=30, nanos=USD // 2))).standing
    assert (standing.rpm_used, standing.tpm_used, standing.model_rpm_used, standing.parallel_used) == (2, 90, 2, 2)
    assert standing.budget_used_nanos == USD
    assert (await refused(store, an_ask("c", tokens=1))).limit.name == "tpm"


async def test_a_limit_taken_away_and_given_back_knows_what_came_between(users: Users, store: Store) -> None:
    await create(users, rpm_limit=5, max_parallel_requests=5)
    await passes(store, an_ask("a"))
    await update(users, rpm_limit=None, max_parallel_requests=None)
    await passes(store, an_ask("b"))
    await update(users, rpm_limit=2, max_parallel_requests=2)
    decision = await refused(store, an_ask("c"))
    assert (decision.limit.name, decision.standing.rpm_used, decision.standing.parallel_used) == ("rpm", 2, 2)


async def test_a_new_budget_duration_starts_a_period_now_and_keeps_the_spend(
    users: Users, store: Store, clock: Clock
) -> None:
    await create(users, max_budget=1, budget_duration="1h")
    await passes(store, an_ask("a", nanos=USD))
    await settle(store, "a", nanos=USD)
    clock.advance(seconds=3_000)
    await update(users, budget_duration="2h")
    record = (await user(users)).record
    assert (record.spend_nanos, record.budget_reset_at_ms) == (USD, clock() + 7_200_000)
    assert (await refused(store, an_ask("b", nanos=1))).wait_ms == 7_200_000
    await update(users, budget_duration=None)
    record = (await user(users)).record
    assert (record.spend_nanos, record.budget_reset_at_ms) == (USD, None)


async def test_p5_setting_the_spend_sets_it_exactly_and_the_books_balance(users: Users, store: Store) -> None:
    await create(users, max_budget=9_000_000)
    await passes(store, an_ask("a", nanos=7))
    await settle(store, "a", nanos=7)
    await update(users, spend=0.123456789)
    record = (await user(users)).record
    assert (record.spend_nanos, record.model_spend_nanos) == (123_456_789, {"gpt-4o": 7})
    await passes(store, an_ask("b", nanos=1))
    await settle(store, "b", nanos=1)
    assert (await user(users)).record.spend_nanos == 123_456_790
    await update(users, spend=None)
    assert (await user(users)).record.spend_nanos == 0


async def test_p5_money_is_exact_up_to_the_largest_amount(users: Users, store: Store) -> None:
    largest = 9_000_000 * USD
    await create(users, max_budget=9_000_000)
    await passes(store, an_ask("a", nanos=largest - 1))
    await settle(store, "a", nanos=largest - 1)
    standing = (await passes(store, an_ask("b", nanos=1))).standing
    assert standing.budget_used_nanos == standing.budget_limit_nanos == largest
    await settle(store, "b", nanos=1)
    record = (await user(users)).record
    assert (record.spend_nanos, record.model_spend_nanos) == (largest, {"gpt-4o": largest})


async def test_a_models_budget_added_later_begins_with_what_its_models_spent(users: Users, store: Store) -> None:
    await create(users)
    for model, nanos in [("gpt-4o", 10), ("gpt-3", 5), ("claude", 100)]:
        await passes(store, an_ask(model, model=model, nanos=nanos))
        await settle(store, model, nanos=nanos)
    await update(users, model_max_budget={"gpt-*": 1})
    standing = (await passes(store, an_ask("b", model="gpt-new", nanos=1))).standing
    assert standing.model_budget_used_nanos == 10 + 5 + 1


async def test_a_models_budget_does_not_begin_with_the_spend_of_a_longer_entry(users: Users, store: Store) -> None:
    await create(users)
    for model, nanos in [("gpt-4o", 10), ("gpt-3", 5)]:
        await passes(store, an_ask(model, model=model, nanos=nanos))
        await settle(store, model, nanos=nanos)
    await update(users, model_max_budget={"gpt-*": 1, "gpt-4o": 1})
    standing = (await passes(store, an_ask("b", model="gpt-new", nanos=1))).standing
    assert standing.model_budget_used_nanos == 5 + 1


async def test_a_models_budget_that_only_grows_keeps_its_period_and_its_spend(
    users: Users, store: Store, clock: Clock
) -> None:
    await create(users, model_max_budget={"gpt-4o": {"max_budget": 1, "budget_duration": "1h"}})
    await passes(store, an_ask("a", nanos=USD))
    await settle(store, "a", nanos=USD)
    clock.advance(seconds=600)
    await update(users, model_max_budget={"gpt-4o": {"max_budget": 2, "budget_duration": "60m"}, "x": 1})
    standing = (await passes(store, an_ask("b", nanos=1))).standing
    assert (standing.model_budget_used_nanos, standing.model_budget_reset_ms) == (USD + 1, 3_000_000)
