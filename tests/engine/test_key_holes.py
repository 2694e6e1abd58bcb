"""Ways past the limits and the identity of API keys, each tried against the engine."""

from __future__ import annotations

import asyncio

from tests.backends import Clock, on_valkey
from tests.engine.asking import an_ask, create, mint, passes, refused, settle, update, user

from llmweir.decision import CallerRefused
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.keys import user_keys
from llmweir.engine.link import Link
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.key_records import KeyFields

SECRET = "sk-handed-from-one-to-another"


async def test_a_user_made_again_is_known_by_the_new_record_on_a_worker_that_knew_the_old(
    store: Store, users: Users
) -> None:
    await create(users, user_alias="Old", permissions={"may": "all"}, teams=["a"], auto_create_key=False)
    before = (await passes(store, an_ask("a"))).profile
    await users.delete(["u"])
    await create(users, user_alias="New", teams=["b"], auto_create_key=False)
    after = (await passes(store, an_ask("b"))).profile
    assert (before.user_alias, after.user_alias) == ("Old", "New")
    assert (after.permissions, after.teams) == ({}, ("b",))


async def test_a_key_that_changes_hands_is_known_by_its_new_holder_on_a_worker_that_knew_the_old(
    store: Store, users: Users
) -> None:
    for user_id in ("ann", "bob"):
        await create(users, user_id, user_alias=user_id.title(), permissions={"of": user_id})
    key = hash_key((await mint(users, "ann", key=SECRET)).secret)
    assert (await passes(store, an_ask("a", user_id="ann", key_hash=key))).profile.user_id == "ann"
    await ApiKeys(users).delete((await user(users, "ann")).keys)
    await mint(users, "bob", key=SECRET)
    owner = await store.owner_of(key, afresh=True)
    assert owner == "bob"
    profile = (await passes(store, an_ask("b", user_id="bob", key_hash=key))).profile
    assert (profile.user_id, profile.user_alias, profile.permissions) == ("bob", "Bob", {"of": "bob"})
    assert store.name_of("bob", key) == "Bob"


@on_valkey
async def test_a_key_that_may_call_no_model_may_not_call_the_words_for_that(store: Store, users: Users) -> None:
    await create(users)
    key = hash_key((await mint(users, models=["no-default-models"])).secret)
    decision = await store.admit(an_ask(key_hash=key, model="no-default-models"))
    assert decision == CallerRefused("model_not_allowed")


async def test_p8_who_is_refused_is_not_told_whose_the_key_was_before(store: Store, users: Users) -> None:
    await create(users, "ann", user_alias="Ann")
    await create(users, "bob", rpm_limit=0)
    key = hash_key((await mint(users, "ann", key=SECRET)).secret)
    await passes(store, an_ask("a", user_id="ann", key_hash=key))
    await ApiKeys(users).delete((await user(users, "ann")).keys)
    await mint(users, "bob", key=SECRET)
    await refused(store, an_ask("b", user_id="bob", key_hash=key))
    assert store.name_of("bob", key) == "bob"


@on_valkey
async def test_a_user_with_more_keys_than_a_command_has_arguments_is_read_changed_and_deleted(
    store: Store, users: Users, link: Link
) -> None:
    await create(users)
    await mint(users, rpm_limit=1)
    await passes(store, an_ask())
    use = user_keys("u").use
    account = await link.call(b"HGET", use, b"k:1")
    assert isinstance(account, bytes)
    await asyncio.gather(*(link.call(b"HSET", use, b"k:%d" % number, account) for number in range(2, 9_000)))
    await update(users, rpm_limit=5)
    standing = await users.data.read("u")
    assert standing is not None
    assert len(standing.accounts) == 9_000
    assert standing.accounts["u"].requests == 1
    await users.delete(["u"])
    assert await users.get("u") is None


async def test_what_a_late_settlement_gives_back_is_not_added_to_the_budget_of_a_keys_next_period(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users)
    key = hash_key((await mint(users)).secret)
    await passes(store, an_ask("a", key_hash=key, nanos=1_000))
    clock.advance(seconds=31)  # its lease is over, so it is charged as held
    (record,) = (await user(users)).keys
    limited = await ApiKeys(users).update(record, KeyFields(max_budget=1e-6, budget_duration="10s"))
    assert limited.spend_nanos == 1_000
    clock.advance(seconds=10)
    assert (await user(users)).keys[0].spend_nanos == 0
    await settle(store, "a", nanos=100)
    assert (await user(users)).keys[0].spend_nanos == 0
    await refused(store, an_ask("b", key_hash=key, nanos=1_001))
