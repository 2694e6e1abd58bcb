from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.backends import Clock, on_valkey
from tests.engine.asking import an_ask, create, mint, passes, user

from llmweir.decision import CallerRefused
from llmweir.engine import keys
from llmweir.engine.any_link import Argument
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.claims import WRITING_MS
from llmweir.engine.key_directory import KeyQuery
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.link import Link
from llmweir.engine.scripts import Script
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.engine.wire import Reply
from llmweir.errors import ConflictError, NotFoundError
from llmweir.key_records import KeyFields, KeyRecord, NewKey

KEY = KeyRecord(token=hashlib.sha256(b"sk-chosen-by-the-caller").hexdigest(), user_id="u", key_name="sk-...ller")
READS = frozenset({"read", "days"})


class CrashError(Exception):
    """The process died here."""


class CrashingLink(Link):
    """A link of a process that dies before its write number `writes`, counted from 0: nothing leaves it any more."""

    def __init__(self, url: str, writes: int) -> None:
        super().__init__(url, timeout_ms=10_000)
        self.left = writes

    def call(self, *command: Argument) -> Any:
        if command[0] in (b"SET", b"DEL"):
            self._count()
        return super().call(*command)

    async def run(self, script: Script, *keys_and_arguments: Argument, keys: int) -> Reply:
        if script.name not in READS:
            self._count()
        return await super().run(script, *keys_and_arguments, keys=keys)

    def _count(self) -> None:
        if self.left == 0:
            raise CrashError
        self.left -= 1


@pytest.fixture
def api_keys(users: Users) -> ApiKeys:
    return ApiKeys(users)


def fields(**sent: Any) -> KeyFields:
    return KeyFields.model_validate_json(json.dumps(sent))


async def listed(api_keys: ApiKeys, **query: Any) -> tuple[list[str | None], int]:
    """The aliases of a page of keys, and how many keys there are."""
    page = await api_keys.page(KeyQuery(**query))
    return [record.key_alias for record in page.records], page.total


# Names and lists.


async def test_a_key_is_found_by_itself_by_its_token_and_by_its_alias(users: Users, api_keys: ApiKeys) -> None:
    await create(users)
    minted = await mint(users, key_alias="laptop")
    assert await api_keys.find(minted.secret) == minted.record
    assert await api_keys.find(minted.record.token) == minted.record
    assert await api_keys.find_alias("laptop") == minted.record
    for missing in (api_keys.find("sk-none"), api_keys.find("0" * 64), api_keys.find_alias("Laptop")):
        with pytest.raises(NotFoundError):
            await missing


async def test_an_alias_is_one_keys_even_among_those_of_one_user(users: Users, api_keys: ApiKeys) -> None:
    await create(users)
    await mint(users, key_alias="laptop")
    other = await mint(users, key_alias="server")
    for attempt in (mint(users, key_alias="laptop"), api_keys.update(other.record, fields(key_alias="laptop"))):
        with pytest.raises(ConflictError) as conflict:
            await attempt
        assert conflict.value.param == "key_alias"
    assert sorted(row.key_alias or "" for row in (await user(users)).keys) == ["laptop", "server"]


@pytest.mark.parametrize("how", ["renamed", "cleared", "deleted", "regenerated and deleted", "deleted with its user"])
async def test_an_alias_given_up_is_free_again(users: Users, api_keys: ApiKeys, how: str) -> None:
    await create(users)
    record = (await mint(users, key_alias="laptop")).record
    match how:
        case "renamed":
            await api_keys.update(record, fields(key_alias="server"))
        case "cleared":
            await api_keys.update(record, fields(key_alias=None))
        case "deleted":
            await api_keys.delete([record])
        case "regenerated and deleted":
            await api_keys.delete([(await api_keys.regenerate(record)).record])
        case "deleted with its user":
            await users.delete(["u"])
            await api_keys.forget([record])
    await create(users, "v")
    assert (await mint(users, "v", key_alias="laptop")).record.key_alias == "laptop"


async def test_a_key_made_anew_keeps_its_alias_and_nobody_else_gets_it(users: Users, api_keys: ApiKeys) -> None:
    await create(users)
    minted = await api_keys.regenerate((await mint(users, key_alias="laptop")).record)
    assert await api_keys.find_alias("laptop") == minted.record
    with pytest.raises(ConflictError):
        await mint(users, key_alias="laptop")


async def test_keys_are_listed_newest_first_all_of_a_users_and_of_a_teams(
    users: Users, api_keys: ApiKeys, clock: Clock
) -> None:
    for number, user_id in enumerate(["u", "v", "u", "u"]):
        if number < 2:
            await create(users, user_id)
        await mint(users, user_id, key_alias=f"k{number}", team_id="red" if number % 2 else None)
        clock.advance(ms=1)
    assert await listed(api_keys, size=3) == (["k3", "k2", "k1"], 4)
    assert await listed(api_keys, size=3, page=2) == (["k0"], 4)
    assert await listed(api_keys, user_id="u", size=2) == (["k3", "k2"], 3)
    assert await listed(api_keys, user_id="u", size=2, page=2) == (["k0"], 3)
    assert await listed(api_keys, team_id="red") == (["k3", "k1"], 2)
    assert await listed(api_keys, key_alias="k1") == (["k1"], 1)
    assert await listed(api_keys, key_alias="k1", user_id="u") == ([], 0)
    assert await listed(api_keys, key_alias="none") == ([], 0)


# Crashes between any two writes.


Step = Callable[[ApiKeys, KeyRecord], Awaitable[object]]
CHANGES: dict[str, Step] = {
    "mint": lambda api_keys, _: api_keys.mint("u", _new(key_alias="new")),
    "rename": lambda api_keys, record: api_keys.update(record, fields(key_alias="new")),
    "regenerate": lambda api_keys, record: api_keys.regenerate(record),
    "delete": lambda api_keys, record: api_keys.delete([record]),
}


def _new(**sent: Any) -> NewKey:
    return NewKey.model_validate_json(json.dumps(sent))


async def crash_at(url: str, clock: Clock, writes: int, step: Step, record: KeyRecord) -> bool:
    """Carry out a change in a process that dies; False: it was done before."""
    link = CrashingLink(url, writes)
    try:
        await step(ApiKeys(Users(link, clock=clock)), record)
    except CrashError:
        return True
    finally:
        await link.aclose()
    return False


@pytest.mark.parametrize("change", CHANGES)
@on_valkey
async def test_wherever_a_change_of_a_key_crashes_the_records_are_the_truth_of_names_and_lists(
    url: str, users: Users, api_keys: ApiKeys, store: Store, link: Link, clock: Clock, change: str
) -> None:
    writes, crashed = 0, True
    while crashed:
        await link.call("FLUSHALL")
        await create(users)
        old = await mint(users, key_alias="old")
        crashed = await crash_at(url, clock, writes, CHANGES[change], old.record)
        rows = (await user(users)).keys
        aliases = {row.key_alias for row in rows if row.key_alias is not None}
        page = await api_keys.page(KeyQuery())
        assert ({row.token for row in page.records}, page.total) == ({row.token for row in rows}, len(rows)), writes
        assert [await api_keys.find(row.token) for row in rows] == [*rows]
        for name in ("old", "new"):
            found = await _found_alias(api_keys, name)
            assert (found in rows) if name in aliases else found is None, (writes, name)
        if old.record.token not in {row.token for row in rows}:
            assert await store.admit(an_ask(f"dead {writes}", key_hash=hash_key(old.secret))) == CallerRefused(
                "unknown_key"
            )
        else:
            await passes(store, an_ask(f"alive {writes}", key_hash=hash_key(old.secret)))
        clock.advance(ms=WRITING_MS)
        for alias in {"old", "new"} - aliases:
            assert (await mint(users, key_alias=alias)).record.key_alias == alias
        for alias in aliases:
            with pytest.raises(ConflictError):
                await mint(users, key_alias=alias)
        writes += 1
    assert writes > 3


async def _found_alias(api_keys: ApiKeys, alias: str) -> KeyRecord | None:
    try:
        return await api_keys.find_alias(alias)
    except NotFoundError:
        return None


@pytest.mark.parametrize("writes", range(8))
@on_valkey
async def test_a_delete_that_crashed_may_be_done_again(
    url: str, users: Users, api_keys: ApiKeys, link: Link, clock: Clock, writes: int
) -> None:
    await create(users)
    old = await mint(users, key_alias="old")
    await crash_at(url, clock, writes, CHANGES["delete"], old.record)
    with contextlib.suppress(NotFoundError):  # its record was gone
        await api_keys.delete([old.record])
    clock.advance(ms=WRITING_MS)
    assert (await user(users)).keys == ()
    assert await listed(api_keys) == ([], 0)
    assert await link.call("GET", keys.api_key(hash_key(old.secret))) is None
    assert await link.call("GET", keys.alias("old")) is None


@pytest.mark.parametrize("writes", range(8))
@on_valkey
async def test_a_key_of_ones_own_choice_whose_making_crashed_may_be_made_again_by_its_user_and_no_other(
    url: str, users: Users, api_keys: ApiKeys, clock: Clock, writes: int
) -> None:
    await create(users)
    await create(users, "other")
    chosen = "sk-chosen-by-the-caller"
    crashed = await crash_at(url, clock, writes, lambda keys_, _: keys_.mint("u", _new(key=chosen)), KEY)
    made = any(row.token == KEY.token for row in (await user(users)).keys)
    if crashed and not made:
        assert (await mint(users, key=chosen)).secret == chosen
    with pytest.raises(ConflictError):
        await mint(users, key=chosen)
    with pytest.raises(ConflictError):
        await mint(users, "other", key=chosen)
    assert (await api_keys.find(chosen)).user_id == "u"


@on_valkey
async def test_of_many_calls_that_make_one_chosen_key_one_makes_it(users: Users, api_keys: ApiKeys) -> None:
    await create(users)
    calls = [mint(users, key="sk-chosen-by-the-caller", rpm_limit=number) for number in range(20)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    won = [result for result in results if not isinstance(result, ConflictError)]
    assert len(won) == 1
    assert [await api_keys.find("sk-chosen-by-the-caller")] == [*(await user(users)).keys]


@on_valkey
async def test_a_delete_of_a_key_made_anew_in_between_does_not_say_that_it_is_gone(
    users: Users, api_keys: ApiKeys
) -> None:
    await create(users)
    old = await mint(users)
    anew = await api_keys.regenerate(old.record)
    with pytest.raises(NotFoundError):
        await api_keys.delete([old.record])
    assert await api_keys.find(anew.secret) == anew.record
