"""The audit of the books: each number corrupted on purpose is found and named, and no life of a user breaks them."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from tests.backends import Clock, on_real_servers, on_valkey
from tests.engine.asking import an_ask, create, mint, passes, settle, update
from tests.engine.test_rules import DUMP, LEASE_TTL_MS, Life

from llmweir.engine import keys, scripts
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.asks import Settlement
from llmweir.engine.books import MOST_FINDINGS, Audit, audit
from llmweir.engine.books_page import DAY_MS
from llmweir.engine.books_rules import Finding
from llmweir.engine.key_hashes import hash_of_token
from llmweir.engine.link import Link
from llmweir.engine.store import Store
from llmweir.engine.users import Users

ACCOUNT = struct.Struct("<qiiqqiqqiq")
FIELDS = ("second", "requests", "slot_requests", "tokens", "slot_tokens", "running", "held", "spent", "period", "ends")
MODEL = struct.Struct("<qiiiqqq")
EXAMPLES = {"valkey": 60, "redis": 20}


async def look(link: Link, clock: Clock | None = None, *user_ids: str, lease_ttl_ms: int = LEASE_TTL_MS) -> Audit:
    return await audit(link, user_ids=user_ids or None, lease_ttl_ms=lease_ttl_ms, clock=clock)


async def everything(link: Link) -> dict[bytes, list[bytes]]:
    """Read all of Redis; the fields of a hash have no order of their own."""
    dump = cast(list[tuple[bytes, Any]], await link.call("EVAL", DUMP, 0))
    return {key: sorted(value) if isinstance(value, list) else [value] for key, value in dump}


def told(found: Audit) -> list[str]:
    return [finding.what for finding in found.findings]


def noted(found: Audit) -> list[str]:
    return [note.what for note in found.notes]


async def a_busy_user(store: Store, users: Users, clock: Clock) -> str:
    """Make a user with all kinds of accounts, two settled requests and two in flight; returns the hash of the key."""
    fields: dict[str, Any] = {"rpm_limit": 100, "tpm_limit": 10_000, "max_budget": 5, "user_email": "ana@example.com"}
    await create(users, **fields, model_max_budget={"gpt-4*": 3})
    minted = await mint(users, key_alias="laptop", max_budget=4, rpm_limit=50)
    key_hash = hash_of_token(minted.record.token)
    for number in range(4):
        await passes(store, an_ask(f"r{number}", key_hash=key_hash, tokens=10, nanos=100))
        if number < 2:
            await settle(store, f"r{number}", tokens=7, nanos=60)
        clock.advance(seconds=1)
    return key_hash


async def edit(link: Link, account: str = "u", **by: int) -> None:
    """Change numbers of an account behind the back of the scripts."""
    use = keys.user_keys("u").use
    packed = cast(bytes, await link.call("HGET", use, account))
    values = dict(zip(FIELDS, ACCOUNT.unpack(packed), strict=True))
    for name, more in by.items():
        values[name] += more
    await link.call("HSET", use, account, ACCOUNT.pack(*values.values()))


def test_python_packs_as_lua_does() -> None:
    sizes = {"b": 1, "i": 4, "q": 8}
    for name, packed in (("account", ACCOUNT), ("model", MODEL)):
        assert [int(size) for size in scripts.LAYOUTS[name][1:].split("i")[1:]] == [
            sizes[kind] for kind in packed.format[1:]
        ]


async def test_a_busy_users_books_balance_and_all_of_it_is_counted(
    link: Link, store: Store, users: Users, clock: Clock
) -> None:
    await a_busy_user(store, users, clock)
    found = await look(link, clock)
    assert (told(found), noted(found)) == ([], [])
    assert (found.users, found.accounts, found.leases, found.in_flight) == (1, 3, 2, 2)
    assert found.balanced
    assert found.exact


async def test_an_audit_writes_nothing_even_where_something_is_due(
    link: Link, store: Store, users: Users, clock: Clock
) -> None:
    await a_busy_user(store, users, clock)
    await update(users, budget_duration="1h")
    clock.advance(ms=DAY_MS)
    before = await everything(link)
    found = await look(link, clock)
    assert found.balanced
    assert found.in_flight == 0
    assert noted(found) == ["Stale leases: 2. They are charged as held when the user is next touched."]
    assert await everything(link) == before


ACCOUNT_EDITS: dict[str, tuple[str, dict[str, int], list[str]]] = {
    "spend": ("u", {"spent": 1}, ["The spend is 121 nanos, but its models and what was set by hand come to 120."]),
    "held": ("u", {"held": -1}, ["The user's account holds 199 nanos, but its leases hold 200."]),
    "running": ("u", {"running": 1}, ["The user's account counts 3 in flight, but the leases that name it are 2."]),
    "a key's held": ("k:1", {"held": 5}, ["The account of API key 1 holds 205 nanos, but its leases hold 200."]),
    "a key's running": (
        "k:1", {"running": -3}, ["The account of API key 1 counts -1 in flight, but the leases that name it are 2."],
    ),
    "an entry's held": (
        "m:gpt-4*", {"held": 1}, ["The account of the model limit gpt-4* holds 201 nanos, but its leases hold 200."],
    ),
    "an entry's running": (
        "m:gpt-4*",
        {"running": 1},
        ["The account of the model limit gpt-4* counts 3 in flight, but the leases that name it are 2."],
    ),
    "a period": (
        "u", {"period": 1}, ["The user's account holds 200 nanos, but its leases hold 0."],
    ),
    "requests": ("u", {"requests": 1}, ["The window of the user's account has 5 requests, but its seconds have 4."]),
    "tokens": (
        "k:1", {"tokens": 3}, ["The window of the account of API key 1 has 37 tokens, but its seconds have 34."],
    ),
    "below zero": (
        "u",
        {"tokens": -40, "slot_tokens": -40},
        ["The tokens in the window of the user's account is below 0: -30."],
    ),
}  # fmt: skip


@on_real_servers
@pytest.mark.parametrize("case", ACCOUNT_EDITS)
async def test_a_number_of_an_account_that_is_off_is_found_alone(
    link: Link, store: Store, users: Users, clock: Clock, case: str
) -> None:
    account, by, expected = ACCOUNT_EDITS[case]
    await a_busy_user(store, users, clock)
    await edit(link, account, **by)
    found = await look(link, clock)
    assert told(found) == expected
    assert not found.balanced
    assert {finding.user_id for finding in found.findings} == {"u"}


async def test_a_finding_says_what_was_expected_and_what_was_found(
    link: Link, store: Store, users: Users, clock: Clock
) -> None:
    await a_busy_user(store, users, clock)
    await edit(link, held=7)
    what = "The user's account holds 207 nanos, but its leases hold 200."
    assert (await look(link, clock)).findings == (Finding("u", what, 200, 207),)


def command_edits(key_hash: str) -> dict[str, tuple[list[Any], list[str]]]:
    user, today = keys.user_keys("u"), Clock()() // DAY_MS
    return {
        "a lost lease": (
            ["HDEL", user.leases, "r3"],
            [
                "The account of API key 1 counts 2 in flight, but the leases that name it are 1.",
                "The account of API key 1 holds 200 nanos, but its leases hold 100.",
                "The account of the model limit gpt-4* counts 2 in flight, but the leases that name it are 1.",
                "The account of the model limit gpt-4* holds 200 nanos, but its leases hold 100.",
                "The user's account counts 2 in flight, but the leases that name it are 1.",
                "The user's account holds 200 nanos, but its leases hold 100.",
            ],
        ),
        "a slot of the ring": (
            ["HINCRBY", keys.window("u", "u"), (Clock()() // 1000 + 1) % 61, 1],
            ["The window of the user's account has 4 requests, but its seconds have 5."],
        ),
        "a slot that the next use overwrites": (
            ["HSET", keys.window("u", "u"), (Clock()() // 1000 + 3) % 61, 9],
            [],
        ),
        "a lost ring": (
            ["DEL", keys.window("u", "k:1")],
            [
                "The window of the account of API key 1 has 34 tokens, but its seconds have 10.",
                "The window of the account of API key 1 has 4 requests, but its seconds have 1.",
            ],
        ),
        "no time to expire": (
            ["HDEL", user.use, "x"],
            ["There are leases, but no time at which to look whether they have expired."],
        ),
        "too late a time to expire": (
            ["HSET", user.use, "x", Clock()() + 90_000],
            ["Expired leases are looked for at 1800000090000 ms, but the first expires at 1800000032000."],
        ),
        "spend set by hand": (
            ["HSET", user.use, "j", 5],
            ["The spend is 120 nanos, but its models and what was set by hand come to 125."],
        ),
        "the books of a day": (
            ["HSET", user.use, "s:gpt-4o", MODEL.pack(120, today, 2, 0, 14, 0, 119)],
            ["The rows of the days come to 119 nanos, less than the 120 spent."],
        ),
        "a row below zero": (
            ["HSET", keys.day("u", today), "gpt-4o", "-3 0 0 0 0"],
            ["A number in the row of the model gpt-4o on day 20833 is below 0: -1."],
        ),
        "a row of words": (
            ["HSET", keys.day("u", today), "gpt-4o", "a lot"],
            ["The row of the model gpt-4o on day 20833 cannot be read."],
        ),
        "an account cut short": (["HSET", user.use, "u", "short"], ["The account u cannot be read."]),
        "a model cut short": (
            ["HSET", user.use, "s:gpt-4o", "short"], ["What was used of the model gpt-4o cannot be read."],
        ),
        "a lease cut short": (["HSET", user.leases, "r3", "short"], ["The lease of request r3 cannot be read."]),
        "a number of words": (["HSET", user.use, "j", "much"], ["J cannot be read."]),
        "a ring of words": (
            ["HSET", keys.window("u", "u"), 5, "much"], ["The window of the account u cannot be read."],
        ),
        "no packed limits": (
            ["HDEL", user.record, "p"],
            ["The limits that every admission reads, field p of the record, cannot be read."],
        ),
        "a duration of words": (
            ["HSET", user.record, "bd", "long", "ba", 1], ["The duration of the budget's periods cannot be read."],
        ),
        "a doc of no JSON": (
            ["HSET", user.doc, "user_email", "ana"], ["The field user_email of the doc cannot be read."],
        ),
        "a key of words": (
            ["HSET", user.record, f"k:{key_hash}", "mine"],
            [
                f"The API key {key_hash} cannot be read in the record.",
                "There is what an API key has used, field k:1, but no such key.",
            ],
        ),
        "a key that the record lost": (
            ["HDEL", user.record, f"k:{key_hash}"],
            [
                f"The doc has a row of the API key {key_hash}, which the record does not have.",
                "There is what an API key has used, field k:1, but no such key.",
            ],
        ),
        "a key that the doc lost": (
            ["HDEL", user.doc, f"key:{key_hash}"], [f"The API key {key_hash} has no row in the doc."],
        ),
        "what a key has used": (
            ["HDEL", user.use, "k:1"], [f"What the API key {key_hash} has used is missing, field k:1."],
        ),
        "whose key it is": (
            ["SET", keys.api_key(key_hash), "bob"], [f"The API key {key_hash} is that of bob outside of the record."],
        ),
        "that it is a key": (
            ["DEL", keys.api_key(key_hash)], [f"The API key {key_hash} is nobody's outside of the record."],
        ),
        "a claim to an address": (
            ["DEL", keys.email("ana@example.com")],
            ["The email address ana@example.com is nobody's outside of the record."],
        ),
        "a claim to an alias": (
            ["SET", keys.alias("laptop"), "1 0 a bob\nb"],
            ["The key alias laptop is that of bob outside of the record."],
        ),
        "the user's place": (["HDEL", keys.catalogue("users").rows, "u"], ["The directory does not list this user."]),
        "a key's place": (
            ["HDEL", keys.catalogue("keys").rows, key_hash], [f"The directory does not list the API key {key_hash}."],
        ),
        "the record": (
            ["DEL", user.record],
            [f"There is lw:{{u:u}}:{name}, but no record that it belongs to." for name in ("doc", "leases", "use")],
        ),
        "a record of another kind": (
            ["RENAME", keys.api_key(key_hash), user.leases],
            [f"The API key {key_hash} is nobody's outside of the record."],
        ),
    }  # fmt: skip


@on_real_servers
@pytest.mark.parametrize("case", command_edits("HASH"))
async def test_whatever_is_written_past_the_scripts_is_found_alone(
    link: Link, store: Store, users: Users, clock: Clock, case: str
) -> None:
    key_hash = await a_busy_user(store, users, clock)
    command, expected = command_edits(key_hash)[case]
    await link.call(*command)
    found = await look(link, clock)
    if case == "a record of another kind":
        assert len(found.findings) == 1
        assert "WRONGTYPE" in found.findings[0].what
    else:
        assert sorted(told(found)) == sorted(expected)


async def test_the_books_of_a_user_with_a_period_may_say_more_than_the_period(
    link: Link, store: Store, users: Users, clock: Clock
) -> None:
    await create(users, budget_duration="1h")
    for number in range(3):
        await passes(store, an_ask(f"r{number}", nanos=100))
        await settle(store, f"r{number}", nanos=60)
        clock.advance(seconds=3_600)
    assert (await look(link, clock)).exact
    await link.call("HSET", keys.user_keys("u").use, "s:gpt-4o", MODEL.pack(60, clock() // DAY_MS, 0, 0, 0, 0, -61))
    assert "less than the 60 spent" in " ".join(told(await look(link, clock)))


async def test_more_in_the_days_than_was_spent_is_a_note_where_there_is_no_period(
    link: Link, store: Store, users: Users, clock: Clock
) -> None:
    await a_busy_user(store, users, clock)
    await link.call("HSET", keys.day("u", clock() // DAY_MS), "gpt-4o", "1 0 5 5 17")
    found = await look(link, clock)
    assert [(note.expected, note.found) for note in found.notes] == [(120, 137)]
    assert found.balanced
    assert not found.exact


async def test_tombstones_and_replay_memos_count_nowhere(link: Link, store: Store, users: Users, clock: Clock) -> None:
    await a_busy_user(store, users, clock)
    await store.settle(Settlement(request_id="r9", user_id="u", cancelled=True))
    await link.call("SET", keys.user_keys("u").record + b":memo:r8", "done")
    found = await look(link, clock)
    assert found.exact
    assert found.leases == 2


async def test_users_are_found_by_id_in_the_directory_and_in_redis_alone(
    link: Link, users: Users, clock: Clock
) -> None:
    for name in ("ana", "bob", "c:d}[*", "Zoë"):
        await create(users, name)
    directory = keys.catalogue("users")
    await link.call("HDEL", directory.rows, "bob")
    await link.call("ZREM", directory.place(keys.text_place("id")), "\0bob")
    found = await look(link, clock)
    assert found.users == 4
    assert found.findings == (Finding("bob", "The directory does not list this user."),)
    assert found.unlisted_users == ("bob",)
    await users.directory.file_again(found.unlisted_users)
    assert (await look(link, clock)).exact


async def test_one_user_is_audited_by_name_and_an_unknown_name_is_said(link: Link, users: Users, clock: Clock) -> None:
    await create(users, "ana")
    await create(users, "bob")
    await link.call("HSET", keys.user_keys("bob").use, "j", 5)
    assert (await look(link, clock, "ana")).exact
    assert told(await look(link, clock, "ana", "bob"))[0].startswith("The spend is 0 nanos")
    assert told(await look(link, clock, "eve")) == ["There is no such user."]


async def test_a_user_being_made_right_now_is_not_called_unlisted(link: Link, users: Users, clock: Clock) -> None:
    async with users.directory.writing("u"):
        await users.data.write("u", "new", [])
        assert (await look(link, clock)).exact


async def test_a_user_listed_without_a_record_is_a_note(link: Link, users: Users, clock: Clock) -> None:
    await create(users)
    await users.data.delete("u")
    found = await look(link, clock)
    assert (told(found), noted(found)) == ([], ["The directory lists a user that does not exist."])


async def test_names_that_no_record_confirms_are_notes(link: Link, users: Users, clock: Clock) -> None:
    await create(users)
    await link.call("SET", keys.api_key("HASH"), "u")
    await link.call("SET", keys.email("old@example.com"), f"{clock() - 20_000} 1 ab u")
    await link.call("SET", keys.alias("old"), f"{clock() - 20_000} 0 ab u\nHASH")
    await link.call("SET", keys.email("new@example.com"), f"{clock()} 1 ab u")
    found = await look(link, clock)
    assert found.balanced
    assert sorted(noted(found)) == [
        f"{name} is a leftover: the record does not confirm it."
        for name in ("lw:alias:old", "lw:email:old@example.com", "lw:key:HASH")
    ]


async def test_findings_are_all_counted_and_the_first_kept(link: Link, clock: Clock) -> None:
    many = MOST_FINDINGS + 5
    await asyncio.gather(*(link.call("HSET", keys.user_keys(f"u{number}").doc, "a", 1) for number in range(many)))
    found = await look(link, clock, *(f"u{number}" for number in range(many)))
    assert found.finding_count == many
    assert len(found.findings) == MOST_FINDINGS


async def test_progress_is_told_up_to_the_last_user(link: Link, users: Users, clock: Clock) -> None:
    await asyncio.gather(*(create(users, f"u{number:03}") for number in range(120)))
    steps: list[tuple[int, int]] = []
    found = await audit(
        link, lease_ttl_ms=LEASE_TTL_MS, clock=clock, progressed=lambda done, total: steps.append((done, total))
    )
    assert found.users == 120
    assert steps == [(50, 120), (100, 120), (120, 120)]


@on_valkey
async def test_the_books_balance_at_every_moment_of_a_busy_minute(link: Link) -> None:
    """On the server's own clock, with users who are written, admitted and settled while the audit looks."""
    store, users = Store(link), Users(link)
    await asyncio.gather(*(create(users, f"u{number}", rpm_limit=1_000_000) for number in range(20)))
    over = asyncio.Event()

    async def live(number: int) -> None:
        turn = 0
        while not over.is_set():
            user_id, turn = f"u{number}", turn + 1
            await passes(store, an_ask(f"{number}-{turn}", user_id=user_id, tokens=5, nanos=9))
            if turn % 3 == 0:
                minted = await mint(users, user_id, key_alias=f"{number}-{turn}")
                await update(users, user_id, user_email=f"{number}-{turn}@example.com")
                await ApiKeys(users).delete([minted.record])
            await settle(store, f"{number}-{turn}", user_id=user_id, tokens=4, nanos=8)

    lives = [asyncio.create_task(live(number)) for number in range(20)]
    try:
        for _ in range(15):
            found = await look(link)
            assert (told(found), found.users) == ([], 20)
    finally:
        over.set()
        await asyncio.gather(*lives)
    found = await look(link)
    assert (told(found), noted(found), found.leases) == ([], [], 0)


class AuditedLife(Life):
    """A life whose books are audited after each step, before anything that is due is carried out.

    Invariants run in the order of their names, and that of `Life` carries out what is due.
    """

    @invariant()
    def all_books_balance(self) -> None:
        if hasattr(self, "users"):
            found = self.run(look(self.link, self.clock))
            assert told(found) == []

    @rule()
    def leave_all_that_is_due(self) -> None:
        self.clock.advance(ms=31_000)
        found = self.run(look(self.link, self.clock))
        assert told(found) == []


@on_real_servers
@pytest.mark.timeout(170)
def test_no_life_of_a_user_breaks_the_books(backend: str, url_of: Callable[[str], str]) -> None:
    steps = settings(max_examples=EXAMPLES[backend], stateful_step_count=40)
    run_state_machine_as_test(lambda: AuditedLife(url_of(backend)), settings=steps)  # type: ignore[arg-type]  # a factory


def test_the_script_writes_nothing() -> None:
    source = (Path(scripts.__file__).parent / "lua" / "books.lua").read_text()
    commands = {word.split("'")[1] for word in source.split("call(")[1:]}
    assert commands == {"EXISTS", "HGET", "HGETALL", "HMGET"}


def test_a_finding_is_data() -> None:
    assert json.loads(msgspec.json.encode(Finding("u", "It is off.", 1, 2))) == {
        "user_id": "u", "what": "It is off.", "expected": 1, "found": 2, "is_note": False,
    }  # fmt: skip
