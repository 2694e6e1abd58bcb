from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import permutations, product
from typing import Literal, get_args

import msgspec
import pytest
from redis.crc import key_slot
from tests.backends import Clock, load_all_scripts, on_real_servers, on_valkey

from llmweir.engine import catalogue, directory, keys
from llmweir.engine.claims import WRITING_MS
from llmweir.engine.directory import Directory, SortField, UserEntry, UserQuery
from llmweir.engine.key_directory import KeyDirectory, KeyEntry, KeyQuery
from llmweir.engine.link import Link
from llmweir.engine.wire import Receiver, Reply

Step = Callable[[], Awaitable[None]]


class Records:
    """The truth, in a dict, and the directory of it."""

    def __init__(self, link: Link, clock: Clock | None) -> None:
        self.entries: dict[str, UserEntry] = {}
        self.spent: dict[str, int] = {}
        self.asked = 0
        self.most_asked = 0
        self.after_a_read: list[Step] = []
        self.unfinished: list[object] = []
        """Writes are kept here, because a context that is collected is ended: nothing ends what a crash cut off."""
        self.directory = Directory(link, self.read, self.spends, clock=clock)

    async def read(self, user_ids: Sequence[str]) -> list[UserEntry | None]:
        self.asked += len(user_ids)
        found = [self.entries.get(user_id) for user_id in user_ids]
        while self.after_a_read:
            await self.after_a_read.pop()()
        return found

    async def spends(self, user_ids: Sequence[str]) -> list[int]:
        self.most_asked = max(self.most_asked, len(user_ids))
        return [self.spent.get(user_id, 0) for user_id in user_ids]

    async def put(self, entry: UserEntry) -> None:
        async with self.directory.writing(entry.user_id):
            self.entries[entry.user_id] = entry

    async def delete(self, user_id: str) -> None:
        async with self.directory.writing(user_id):
            del self.entries[user_id]

    async def list(self, **query: object) -> tuple[list[str], int]:
        return await self.directory.user_ids(msgspec.convert({"page_size": 100, **query}, UserQuery))

    def steps(self, user_id: str, entry: UserEntry | None) -> Iterator[Step]:
        """A write in its three steps: each may be the last before a crash."""
        writing: list[AbstractAsyncContextManager[None]] = []

        async def before() -> None:
            writing.append(self.directory.writing(user_id))
            self.unfinished.append(writing[0])
            await writing[0].__aenter__()

        async def write() -> None:
            self.entries.pop(user_id, None)
            if entry is not None:
                self.entries[user_id] = entry

        async def after() -> None:
            await writing[0].__aexit__(None, None, None)

        return iter([before, write, after])


def an_entry(user_id: str = "u", created_at_ms: int = 1, **fields: object) -> UserEntry:
    blank = UserEntry(user_id, None, None, "internal_user", (), created_at_ms)
    return msgspec.structs.replace(blank, **fields)


@pytest.fixture
def records(link: Link, clock: Clock) -> Records:
    return Records(link, clock)


# What is found, against a plain model.


def people(count: int = 60) -> list[UserEntry]:
    chance = random.Random(7)
    roles = ["customer", "internal_user", "proxy_admin"]
    return [
        an_entry(
            f"{'Uv'[number % 2]}{number}",
            chance.randrange(40),
            email=chance.choice([None, f"{chance.choice('aBcä')}{number}@Example.com"]),
            alias=chance.choice([None, f"{chance.choice('xYz')} the {number}"]),
            role=chance.choice(roles),
            teams=tuple(chance.sample(["red", "blue", "green"], chance.randrange(3))),
        )
        for number in range(count)
    ]


def is_found(entry: UserEntry, query: UserQuery) -> bool:
    texts = [entry.user_id, entry.email or "", entry.alias or ""]
    return (
        query.role in (None, entry.role)
        and (query.team is None or query.team in entry.teams)
        and (query.user_ids is None or entry.user_id in query.user_ids)
        and (query.user_email or "").casefold() in (entry.email or "").casefold()
        and any((query.search or "").casefold() in text.casefold() for text in texts)
    )


def rank(entry: UserEntry, sort_by: SortField, spent: dict[str, int]) -> tuple[object, ...]:
    ranks: dict[SortField, tuple[object, ...]] = {
        "created_at": (entry.created_at_ms,),
        "user_id": (),
        "user_email": (entry.email is None, (entry.email or "").casefold()),
        "user_alias": (entry.alias is None, (entry.alias or "").casefold()),
        "user_role": (entry.role, entry.created_at_ms),
        "spend": (spent[entry.user_id],),
    }
    return (*ranks[sort_by], entry.user_id)


FILTERS: dict[str, dict[str, object]] = {
    "all": {},
    "a role": {"role": "customer"},
    "a team": {"team": "red"},
    "a role and a team": {"role": "internal_user", "team": "blue"},
    "part of an email": {"user_email": "A1"},
    "part of anything": {"search": "V3"},
    "part of an alias": {"search": "THE 4"},
    "ids": {"user_ids": ("U2", "v3", "nobody", "U4", "U2")},
    "ids and a role": {"user_ids": tuple(f"U{number}" for number in range(40)), "role": "customer"},
    "everything": {"role": "customer", "team": "red", "user_email": "@", "search": "e", "user_ids": ("U0", "U2", "U8")},
    "nobody": {"team": "black"},
    "no such role": {"role": "king", "search": "u"},
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("how", ["groups sorted here", "groups found by a walk"])
@on_real_servers
async def test_a_list_finds_what_a_plain_model_finds_in_the_same_order(
    records: Records, monkeypatch: pytest.MonkeyPatch, filters: dict[str, object], how: str
) -> None:
    if how == "groups found by a walk":
        monkeypatch.setattr(directory, "_MOST_SORTED_HERE", 0)
    monkeypatch.setattr(directory, "CHUNK", 7)
    monkeypatch.setattr(catalogue, "CHUNK", 7)
    await filed(records, people())
    records.spent = {entry.user_id: entry.created_at_ms % 5 for entry in people()}
    for sort_by, sort_order in product(get_args(SortField), ("asc", "desc")):
        query = msgspec.convert({**filters, "sort_by": sort_by, "sort_order": sort_order, "page_size": 100}, UserQuery)
        found = [entry for entry in records.entries.values() if is_found(entry, query)]
        found.sort(key=lambda entry: rank(entry, sort_by, records.spent), reverse=sort_order == "desc")
        assert await records.directory.user_ids(query) == ([entry.user_id for entry in found], len(found)), query
    assert records.most_asked <= 7


@pytest.mark.parametrize("sort_by", get_args(SortField))
@pytest.mark.parametrize("filters", [{}, {"search": "u"}], ids=["of all", "of a search"])
async def test_the_pages_of_a_list_hold_everybody_once(
    records: Records, sort_by: SortField, filters: dict[str, object]
) -> None:
    await filed(records, people())
    everybody, total = await records.list(sort_by=sort_by, **filters)
    pages = [
        await records.list(page=page, page_size=7, sort_by=sort_by, **filters) for page in range(1, total // 7 + 3)
    ]
    assert [user_id for ids, _ in pages for user_id in ids] == everybody
    assert {found for _, found in pages} == {total}


async def filed(records: Records, entries: Sequence[UserEntry]) -> None:
    records.entries.update({entry.user_id: entry for entry in entries})
    await records.directory.file_again([entry.user_id for entry in entries])


async def test_names_that_look_like_keys_stay_apart(records: Records) -> None:
    names = ["a", "a}", "{users}", "a:role:customer", "%", "ä", "*", "a b"]
    for name in names:
        await records.put(an_entry(name, alias=f"is {name}", teams=(name,)))
    for name in names:
        assert await records.list(team=name) == ([name], 1)
        assert await records.list(search=f"is {name}", sort_by="user_id", sort_order="asc") == (
            sorted(other for other in names if name in other and other.startswith(name)),
            sum(other.startswith(name) for other in names),
        )


async def test_a_change_moves_a_user_and_leaves_nothing_behind(records: Records, link: Link) -> None:
    await records.put(an_entry(email="a@b.c", alias="Al", role="customer", teams=("red", "blue")))
    await records.put(an_entry(email="d@e.f", alias="Bo", role="proxy_admin", teams=("blue", "green", "green")))
    for gone in ({"role": "customer"}, {"team": "red"}, {"search": "al"}, {"user_email": "a@"}):
        assert await records.list(**gone) == ([], 0)
    for here in ({"role": "proxy_admin"}, {"team": "blue"}, {"team": "green"}, {"search": "bo"}, {}):
        assert await records.list(**here) == (["u"], 1)
    await records.delete("u")
    assert await records.list() == ([], 0)
    assert await link.call("KEYS", "*") == []


async def test_a_user_made_again_is_listed_by_its_new_creation(records: Records) -> None:
    for user_id, created_at_ms in (("u", 1), ("v", 2)):
        await records.put(an_entry(user_id, created_at_ms))
    await records.delete("u")
    await records.put(an_entry("u", 3))
    assert await records.list() == (["u", "v"], 2)


# Crashes and races.

CRASHES: dict[str, tuple[UserEntry | None, UserEntry | None]] = {
    "while made": (None, an_entry(role="customer", teams=("red",), email="a@b.c")),
    "while changed": (
        an_entry(role="customer", teams=("red",), email="a@b.c"),
        an_entry(role="proxy_admin", teams=("blue",), email="d@e.f"),
    ),
    "while deleted": (an_entry(role="customer", teams=("red",), email="a@b.c"), None),
}


@pytest.mark.parametrize(("old", "new"), CRASHES.values(), ids=CRASHES)
@pytest.mark.parametrize("steps", [1, 2], ids=["before the record", "after the record"])
@pytest.mark.parametrize("later_ms", [0, WRITING_MS], ids=["at once", "later"])
async def test_a_list_shows_the_truth_whatever_a_crash_left(
    records: Records, clock: Clock, link: Link, old: UserEntry | None, new: UserEntry | None, steps: int, later_ms: int
) -> None:
    await records.put(an_entry("other", 0, role="customer", teams=("red", "blue")))
    if old is not None:
        await records.put(old)
    write = records.steps("u", new)
    for _ in range(steps):
        await next(write)()
    clock.advance(ms=later_ms)
    await shows_the_truth(records)
    clock.advance(ms=WRITING_MS)
    await shows_the_truth(records)
    assert await link.call("ZCARD", keys.catalogue("users").writing) == 0


async def shows_the_truth(records: Records) -> None:
    # First where each user should be: a list that meets one where it should not be mends both.
    places: list[dict[str, object]] = [{"role": entry.role} for entry in records.entries.values()]
    queries: list[dict[str, object]] = [
        *places, {}, {"role": "customer"}, {"role": "proxy_admin"}, {"team": "red"}, {"team": "blue"}, {"search": "@"},
        {"sort_by": "user_email"}, {"sort_by": "user_role"}, {"sort_by": "spend"}, {"user_ids": ("u", "other")},
    ]  # fmt: skip
    for filters in queries:
        found, total = await records.list(**filters)
        query = msgspec.convert(filters, UserQuery)
        true = {entry.user_id for entry in records.entries.values() if is_found(entry, query)}
        assert (set(found), len(found), total) == (true, len(true), len(true)), filters


async def test_a_list_amid_a_write_neither_shows_nor_forgets_it(records: Records) -> None:
    for entry in (an_entry(), an_entry(role="customer"), None):
        for step in records.steps("u", entry):
            await step()
            await shows_the_truth(records)


@on_valkey
async def test_two_writers_and_a_reader_of_one_user_in_any_order_leave_the_truth(
    records: Records, clock: Clock, link: Link
) -> None:
    for order in sorted(set(permutations("XXXYYYL"))):
        for last in (None, an_entry(role="proxy_admin", teams=("blue",))):
            await link.call("FLUSHALL")
            records.entries.clear()
            await records.put(an_entry(role="proxy_admin", teams=("blue",)))
            writers = {
                "X": records.steps("u", an_entry(role="customer", teams=("red",))),
                "Y": records.steps("u", last),
            }
            for name in order:
                await (records.list() if name == "L" else next(writers[name])())
            await shows_the_truth(records)
            assert await link.call("ZCARD", keys.catalogue("users").writing) == 0, order


@pytest.mark.parametrize("later_ms", [0, WRITING_MS], ids=["in time", "late"])
async def test_a_writer_that_read_its_record_before_another_wrote_does_not_file_it(
    records: Records, clock: Clock, later_ms: int
) -> None:
    await records.put(an_entry(role="internal_user"))
    slow = records.steps("u", an_entry(role="customer"))
    await next(slow)()
    await next(slow)()

    async def another_writes() -> None:
        clock.advance(ms=later_ms)
        await records.put(an_entry(role="proxy_admin"))

    records.after_a_read.append(another_writes)
    await next(slow)()
    await shows_the_truth(records)
    assert await records.list(role="proxy_admin") == (["u"], 1)


@pytest.mark.parametrize("later_ms", [0, WRITING_MS], ids=["in time", "late"])
async def test_what_was_read_before_another_wrote_is_not_filed(records: Records, clock: Clock, later_ms: int) -> None:
    """A list reads the record while a writer is at work, and only files it when the writer is long done."""
    await records.put(an_entry(role="customer"))
    write = records.steps("u", an_entry(role="proxy_admin"))
    await next(write)()
    clock.advance(ms=later_ms)

    async def the_rest() -> None:
        for step in write:
            await step()

    records.after_a_read.append(the_rest)
    assert await records.list(role="proxy_admin") == (["u"], 1)
    assert await records.list(role="customer") == ([], 0)


async def test_a_writer_that_crashes_after_another_has_come_and_gone_is_found_out(records: Records) -> None:
    crashes = records.steps("u", an_entry(role="customer"))
    await next(crashes)()
    await records.put(an_entry(role="proxy_admin"))
    await next(crashes)()
    assert await records.list(role="customer") == (["u"], 1)


async def test_a_writer_that_was_given_up_on_is_filed_all_the_same(records: Records, clock: Clock) -> None:
    slow = records.steps("u", an_entry(role="customer"))
    await next(slow)()
    clock.advance(ms=WRITING_MS)
    assert await records.list() == ([], 0)
    for step in slow:
        await step()
    assert await records.list(role="customer") == (["u"], 1)


async def test_a_writer_whose_look_at_the_record_another_outdates_while_both_are_at_work_does_not_file_it(
    records: Records,
) -> None:
    first = records.steps("u", an_entry(role="customer"))
    second = records.steps("u", an_entry(role="proxy_admin"))
    await next(first)()
    await next(second)()
    await next(second)()

    async def the_first_ends() -> None:
        for step in first:
            await step()

    records.after_a_read.append(the_first_ends)
    await next(second)()
    assert await records.list(role="customer") == (["u"], 1)


async def test_the_next_write_after_a_crash_files_the_user_by_itself(
    records: Records, clock: Clock, link: Link
) -> None:
    await next(records.steps("u", an_entry()))()
    clock.advance(ms=WRITING_MS)
    await records.put(an_entry(role="customer"))
    assert await link.call("ZCARD", keys.catalogue("users").writing) == 0
    assert await records.list(role="customer") == (["u"], 1)


@pytest.mark.parametrize("name", ["red", "}", "{red}", "", "a b", "ä"])
def test_all_of_a_catalogue_lies_in_one_slot_and_not_in_a_users(name: str) -> None:
    users = keys.catalogue("users")
    suffixes = [keys.role_place(name), keys.team_place(name), keys.text_place("email")]
    slots = {key_slot(key) for key in (users.base, users.rows, users.writing, *map(users.place, suffixes))}
    assert len(slots) == 1
    assert slots.isdisjoint({key_slot(keys.catalogue("keys").base), key_slot(keys.user_keys(name).record)})


@pytest.mark.parametrize("count", [99, 100, 250])
@on_real_servers
async def test_one_list_heals_all_that_many_crashes_left(
    records: Records, clock: Clock, link: Link, count: int
) -> None:
    for number in range(count):
        write = records.steps(f"u{number}", an_entry(f"u{number}"))
        await next(write)()
        await next(write)()
    clock.advance(ms=WRITING_MS)
    assert (await records.list())[1] == count
    assert await link.call("ZCARD", keys.catalogue("users").writing) == 0


@pytest.mark.parametrize("filters", [{}, {"sort_by": "user_email"}, {"search": "@"}, {"user_ids": ("u", "v", "w")}])
async def test_what_differs_from_its_record_is_found_out_and_filed_again(
    records: Records, filters: dict[str, object]
) -> None:
    """As after a failover that lost some writes: the directory has a deleted user, and another's old email."""
    for user_id in ("u", "v", "w"):
        await records.put(an_entry(user_id, email=f"{user_id}@b.c"))
    del records.entries["u"]
    records.entries["v"] = an_entry("v", email="z@b.c")
    found, total = await records.list(sort_order="asc", **filters)
    assert (sorted(found), total) == (["v", "w"], 2)
    assert await records.list(user_email="z@") == (["v"], 1)
    assert await records.list(sort_by="user_email", sort_order="asc") == (["w", "v"], 2)


async def test_a_user_in_flux_all_the_time_is_shown_as_long_as_it_exists(records: Records) -> None:
    """Each look at the record is outdated before it is filed."""
    await records.put(an_entry())
    aliases = [str(number) for number in range(20)]

    async def changes_again() -> None:
        records.entries["u"] = an_entry(alias=aliases.pop())
        if aliases:
            asyncio.get_running_loop().call_soon(records.after_a_read.append, changes_again)

    await changes_again()
    await asyncio.sleep(0)
    assert await records.list() == (["u"], 1)
    assert len(aliases) == 19 - 2 * catalogue._ATTEMPTS


async def test_a_user_who_is_gone_whenever_the_list_looks_is_not_counted(records: Records) -> None:
    await records.put(an_entry())
    await records.put(an_entry("v"))
    looks = [an_entry() if number % 2 else None for number in range(6)]

    async def comes_and_goes() -> None:
        entry = looks.pop()
        records.entries.pop("u", None)
        if entry is not None:
            records.entries["u"] = entry
        if looks:
            asyncio.get_running_loop().call_soon(records.after_a_read.append, comes_and_goes)

    del records.entries["u"]
    records.after_a_read.append(comes_and_goes)
    assert await records.list() == (["v"], 1)


async def test_a_user_whom_a_walk_meets_twice_counts_once(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody comes in before those that the walk has passed, so that all move on by one."""
    monkeypatch.setattr(catalogue, "CHUNK", 7)
    await filed(records, [an_entry(f"u{number}", 10 + number) for number in range(30)])
    plain_spends = records.spends

    async def somebody_comes(user_ids: Sequence[str]) -> list[int]:
        await filed(records, [an_entry(f"v{len(records.entries)}", 1)])
        return await plain_spends(user_ids)

    monkeypatch.setattr(records.directory, "_spends", somebody_comes)
    found, total = await records.list(sort_by="spend", page_size=30)
    assert sorted(found) == sorted(f"u{number}" for number in range(30))
    assert total == 30


async def test_a_write_that_fails_leaves_the_directory_as_it_was(records: Records) -> None:
    await records.put(an_entry(role="customer"))
    with pytest.raises(ZeroDivisionError):
        async with records.directory.writing("u"):
            raise ZeroDivisionError
    async with records.directory.writing("nobody"):
        pass
    assert await records.list() == (["u"], 1)


@on_valkey
async def test_a_store_that_goes_away_after_the_record_does_not_fail_the_write(
    records: Records, link: Link, url: str, clock: Clock
) -> None:
    async with records.directory.writing("u"):
        records.entries["u"] = an_entry()
        await link.aclose()
    other = Link(url)
    again = Records(other, clock)
    again.entries = records.entries
    assert await again.list() == (["u"], 1)
    await other.aclose()


# What it costs.


class CountingLink(Link):
    """A link that counts what goes out, and the items that come back."""

    commands = 0
    most_items = 0

    def post(self, packed: bytes, receiver: Receiver) -> None:
        self.commands += 1
        if isinstance(receiver, asyncio.Future):
            receiver.add_done_callback(self._count)
        super().post(packed, receiver)

    def _count(self, future: asyncio.Future[Reply]) -> None:
        reply = future.result()
        self.most_items = max(self.most_items, len(reply) if isinstance(reply, list) else 1)


@pytest.fixture
async def counting(url: str) -> AsyncIterator[CountingLink]:
    link = CountingLink(url, timeout_ms=10_000)
    await load_all_scripts(link)
    yield link
    await link.aclose()


PAGES: dict[str, dict[str, object]] = {
    "default": {},
    "the last page": {"page": 4},
    "a role": {"role": "internal_user"},
    "a team": {"team": "red"},
    "by id": {"sort_by": "user_id"},
    "by email": {"sort_by": "user_email", "sort_order": "asc"},
    "by alias": {"sort_by": "user_alias"},
    "by role": {"sort_by": "user_role"},
    "some ids": {"user_ids": tuple(f"u{number}" for number in range(25))},
}


@pytest.mark.parametrize("query", PAGES.values(), ids=PAGES)
@on_valkey
async def test_a_page_costs_the_same_with_a_hundred_users_as_with_five_thousand(
    counting: CountingLink, query: dict[str, object]
) -> None:
    records = Records(counting, None)
    costs = []
    for count in (100, 5_000):
        everybody = [an_entry(f"u{number}", number, email=f"{number}@b.c", teams=("red",)) for number in range(count)]
        await filed(records, everybody)
        page = {**query, "page": count // 25} if "page" in query else query
        counting.commands, counting.most_items, records.asked = 0, 0, 0
        found, total = await records.list(**{"page_size": 25, **page})
        assert (len(found), total) == (25, 25 if "user_ids" in query else count)
        costs.append((counting.commands, counting.most_items, records.asked))
    assert costs[0] == costs[1]
    assert costs[0][0] <= 12
    assert costs[0][1:] == (25, 25)


@pytest.mark.parametrize("query", [{"search": "u4"}, {"sort_by": "spend"}, {"team": "red", "sort_by": "user_email"}])
@on_valkey
async def test_no_command_of_a_walk_reads_more_than_a_thousand(
    counting: CountingLink, query: dict[str, object]
) -> None:
    records = Records(counting, None)
    await filed(records, [an_entry(f"u{number}", number, teams=("red",)) for number in range(5_000)])
    counting.commands, counting.most_items, records.asked = 0, 0, 0
    await records.list(**query)
    assert counting.most_items == 1_000
    assert counting.commands <= 2 * 5 + 10
    assert records.asked == 100


# API keys.


class KeyRecords:
    """The truth about API keys, and the directory of them."""

    def __init__(self, link: Link, clock: Clock) -> None:
        self.entries: dict[str, KeyEntry] = {}
        self.directory = KeyDirectory(link, self.read, clock=clock)

    async def read(self, key_hashes: Sequence[str]) -> list[KeyEntry | None]:
        return [self.entries.get(key_hash) for key_hash in key_hashes]

    async def put(self, key_hash: str, user_id: str, created_at_ms: int, team_id: str | None = None) -> None:
        async with self.directory.writing(key_hash):
            self.entries[key_hash] = KeyEntry(key_hash, user_id, team_id, created_at_ms)

    async def list(self, page: int = 1, team_id: str | None = None) -> tuple[list[tuple[str, str]], int]:
        return await self.directory.key_hashes(KeyQuery(page=page, size=2, team_id=team_id))


@pytest.fixture
async def key_records(link: Link, clock: Clock) -> KeyRecords:
    records = KeyRecords(link, clock)
    for number, team_id in enumerate([None, "red", "red"]):
        await records.put(f"k{number}", f"u{number}", number, team_id)
    return records


async def test_keys_are_listed_newest_first_with_their_users(key_records: KeyRecords) -> None:
    assert await key_records.list() == ([("k2", "u2"), ("k1", "u1")], 3)
    assert await key_records.list(page=2) == ([("k0", "u0")], 3)
    assert await key_records.list(page=3) == ([], 3)


async def test_keys_are_listed_by_team(key_records: KeyRecords) -> None:
    assert await key_records.list(team_id="red") == ([("k2", "u2"), ("k1", "u1")], 2)
    await key_records.put("k1", "u1", 1, "blue")
    assert await key_records.list(team_id="red") == ([("k2", "u2")], 1)
    assert await key_records.list(team_id="blue") == ([("k1", "u1")], 1)


@pytest.mark.parametrize("how", ["by a crash", "with its user"])
async def test_a_key_that_is_gone_is_not_listed(key_records: KeyRecords, how: Literal["by a crash"]) -> None:
    writing = key_records.directory.writing("k1")
    if how == "by a crash":
        await writing.__aenter__()
    del key_records.entries["k1"]
    assert await key_records.list(team_id="red") == ([("k2", "u2")], 1)
    assert await key_records.list() == ([("k2", "u2"), ("k0", "u0")], 2)


async def test_keys_the_directory_never_had_can_be_filed(key_records: KeyRecords, link: Link) -> None:
    await link.call("FLUSHALL")
    assert await key_records.list() == ([], 0)
    await key_records.directory.file_again([*key_records.entries, "nobody's"])
    assert (await key_records.list())[1] == 3


async def test_users_and_keys_are_catalogues_of_their_own(key_records: KeyRecords, records: Records) -> None:
    await records.put(an_entry("k0"))
    assert await records.list() == (["k0"], 1)
    assert (await key_records.list())[1] == 3
