from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from itertools import count

import hiredis
import pytest
from redis.crc import key_slot
from tests.backends import load_all_scripts
from tests.engine.asking import an_ask, create, mint, update
from tests.engine.asking import user as read_user
from tests.engine.test_link import until
from tests.redis_forms import Cluster, Server, cluster

from llmweir.decision import Admitted
from llmweir.engine import keys, scripts
from llmweir.engine.any_link import AnyLink
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.asks import Settlement
from llmweir.engine.books import audit
from llmweir.engine.books_walk import walked_ids
from llmweir.engine.cluster import ClusterLink
from llmweir.engine.cluster_map import EVERY_MASTER, SlotRange, probe_keys, read_redirection, read_slots, slot_of
from llmweir.engine.connect import connect
from llmweir.engine.directory import UserQuery
from llmweir.engine.key_directory import KeyQuery
from llmweir.engine.link import Link
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.engine.wire import Reply, ReplyError
from llmweir.errors import StoreUnavailableError

COST_NANOS = 7
pytestmark = [pytest.mark.timeout(240), pytest.mark.faults]


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """Give three masters, which no test of those that share them breaks."""
    with cluster("valkey") as whole:
        yield whole


@pytest.fixture
async def link(three: Cluster) -> AsyncIterator[ClusterLink]:
    async with linked(three) as link:
        yield link


@contextlib.asynccontextmanager
async def linked(whole: Cluster, *, timeout_ms: int = 5_000) -> AsyncIterator[ClusterLink]:
    link = connect(whole.url, timeout_ms=timeout_ms)
    assert isinstance(link, ClusterLink)
    try:
        await load_all_scripts(link)
        yield link
    finally:
        await link.aclose()


async def is_ready(link: ClusterLink) -> None:
    """Wait until it is; a node that has just come back serves nothing for a while."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                return await link.ready()
            await asyncio.sleep(0.02)


def slot_of_user(user_id: str) -> int:
    return key_slot(keys.user_keys(user_id).record)


def names(letter: str) -> Iterator[str]:
    return (f"{letter}{number}" for number in count())


def one_on_each(whole: Cluster, letter: str) -> dict[int, str]:
    """Give a user id for each master, by the master's port."""
    found: dict[int, str] = {}
    for name in names(letter):
        found.setdefault(whole.owner_of(slot_of_user(name)).port, name)
        if len(found) == len(whole.masters):
            return found
    raise AssertionError


class Load:
    """Requests of some users, admitted and settled without an end until it is told; it notes what was promised."""

    def __init__(self, link: AnyLink, user_ids: list[str]) -> None:
        self.store = Store(link)
        self.users = Users(link)
        self._user_ids = user_ids
        self._numbers = count()
        self._stops = False
        self.settled: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        for user_id in self._user_ids:
            await create(self.users, user_id, rpm_limit=10_000_000, max_budget=1_000)
        async with asyncio.TaskGroup() as group:
            for user_id in self._user_ids * 4:
                group.create_task(self._requests_of(user_id))
            try:
                yield
            finally:
                self._stops = True

    async def _requests_of(self, user_id: str) -> None:
        while not self._stops:
            request_id = f"r{next(self._numbers)}"
            try:
                decision = await self.store.admit(an_ask(request_id, user_id=user_id, nanos=50))
            except (StoreUnavailableError, ReplyError):
                self.failed[user_id] += 1
                await asyncio.sleep(0.01)
                continue
            assert isinstance(decision, Admitted), decision
            self.store.settle(Settlement(request_id=request_id, user_id=user_id, cost_nanos=COST_NANOS))
            self.settled[user_id] += 1
            await asyncio.sleep(0.002)

    async def has_gone_on(self, user_ids: list[str], requests: int = 20) -> None:
        """Wait until each of these users has had so many more requests."""
        before = self.settled.copy()
        await until(lambda: all(self.settled[each] >= before[each] + requests for each in user_ids), wait_s=60)

    async def spent(self, user_id: str) -> tuple[int, int, int]:
        """Give requests in the books, nanos charged and nanos held."""
        record = (await read_user(self.users, user_id)).record
        today = int(datetime.now(tz=UTC).timestamp()) // 86_400
        rows = await self.users.data.days(user_id, today - 1, today)
        return sum(row.requests for row in rows), record.spend_nanos, record.reserved_nanos

    async def books_are_whole(self, user_ids: list[str]) -> None:
        """Wait until the books have exactly what was promised."""
        for user_id in user_ids:
            wanted = (self.settled[user_id], self.settled[user_id] * COST_NANOS, 0)
            deadline = time.monotonic() + 30
            while (found := await self.spent(user_id)) != wanted:
                assert time.monotonic() < deadline, (user_id, found, wanted)
                self.store.send_kept()
                await asyncio.sleep(0.05)


# Where a command goes.


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "lw:key:x"), b"lw:key:x"),
        (("EVALSHA", "a" * 40, 2, "lw:{u:a}", "lw:{u:a}:use", "text"), b"lw:{u:a}"),
        (("EVALSHA", "a" * 40, 1, "lw:{u:\r\n}", "text"), b"lw:{u:\r\n}"),
        (("EVAL", "return 1\r\n", 1, "lw:{u:b}"), b"lw:{u:b}"),
        (("ZRANGE", "lw:{users}", 0, -1), b"lw:{users}"),
        (("get", "lw:key:y"), b"lw:key:y"),
    ],
    ids=["first argument", "script", "script with a line end", "source", "more arguments", "small letters"],
)
def test_the_first_key_of_a_packed_command_says_its_slot(command: tuple[str | int, ...], key: bytes) -> None:
    assert slot_of(hiredis.pack_command(command)) == key_slot(key)  # type: ignore[arg-type]  # its stub means one item


@pytest.mark.parametrize("command", [("PING",), ("SCRIPT", "LOAD", "return 1")], ids=["ping", "script"])
def test_commands_without_a_key_go_to_all_masters(command: tuple[str, ...]) -> None:
    assert slot_of(hiredis.pack_command(command)) == EVERY_MASTER  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    ("error", "place"),
    [
        ("MOVED 3999 10.0.0.1:6381", (3999, ("10.0.0.1", 6381))),
        ("MOVED 3999 ::1:6381", (3999, ("::1", 6381))),
        ("MOVED 3999 :6381", (3999, ("here", 6381))),
        ("ASK 1 node.test:7000", (1, ("node.test", 7000))),
    ],
    ids=["address", "IPv6", "no host", "name"],
)
def test_a_redirection_says_where_the_slot_went(error: str, place: tuple[int, tuple[str, int]]) -> None:
    assert read_redirection(error, ("here", 1)) == place


def test_a_node_without_a_host_in_the_map_is_where_it_was_asked() -> None:
    reply: Reply = [[0, 100, [b"", 7000, b"id"], [b"10.0.0.2", 7001, b"id"]], [101, 16383, [None, 7002, b"id"]]]
    found = read_slots(reply, ("here", 1))
    assert found.masters == {("here", 7000), ("here", 7002)}
    assert found.nodes == {("here", 7000), ("10.0.0.2", 7001), ("here", 7002)}
    assert found.is_whole


def test_each_master_has_a_probe_of_its_own() -> None:
    halves = (SlotRange(0, 8_191, ("a", 1)), SlotRange(8_192, 16_383, ("b", 1)))
    found = probe_keys(halves)
    assert key_slot(found[("a", 1)]) <= 8_191 < key_slot(found[("b", 1)])


def test_a_link_to_one_server_takes_no_url_of_a_cluster() -> None:
    with pytest.raises(ValueError, match="a link for each master"):
        Link("redis+cluster://localhost")


# With real nodes.


async def test_every_user_is_served_by_the_master_of_its_slot(three: Cluster, link: ClusterLink) -> None:
    store, users = Store(link), Users(link)
    for user_id in one_on_each(three, "served-").values():
        await create(users, user_id, max_budget=1)
        assert isinstance(await store.admit(an_ask(user_id, user_id=user_id, nanos=5)), Admitted)
        await store.settle(Settlement(request_id=user_id, user_id=user_id, cost_nanos=3))
        assert (await read_user(users, user_id)).record.spend_nanos == 3
    assert link.is_up
    assert not link.is_down


async def test_users_of_every_master_are_found_though_no_directory_lists_them(
    three: Cluster, link: ClusterLink
) -> None:
    users, by_id = Users(link), keys.catalogue("users").place(keys.text_place("id"))
    lost = list(one_on_each(three, "unlisted-").values())
    for user_id in lost:
        await create(users, user_id, max_budget=1)
        await link.call("ZREM", by_id, f"\0{user_id}")
    found = [user_id async for user_id in walked_ids(link)]
    assert sorted(found) == sorted(lost)
    assert (await audit(link, user_ids=lost, lease_ttl_ms=30_000)).exact
    for user_id in lost:
        await users.delete([user_id])


async def test_users_and_keys_are_administered_across_slots(three: Cluster, link: ClusterLink) -> None:
    users = Users(link)
    api_keys = ApiKeys(users)
    ids = [f"admin-{number}" for number in range(30)]
    for number, user_id in enumerate(ids):
        await create(users, user_id, user_email=f"{user_id}@x.test", teams=["t"], max_budget=1)
        await mint(users, user_id, key_alias=f"alias-{number}")
    await update(users, ids[0], user_email="new@x.test", user_alias="Ann")
    page = await users.page(UserQuery(search="admin-", page_size=50, sort_by="user_id", sort_order="asc"))
    assert ([each.record.user_id for each in page.users], page.total) == (sorted(ids), 30)
    assert {slot_of_user(user_id) // 5_462 for user_id in ids} == {0, 1, 2}
    assert await users.id_of_email("new@x.test") == ids[0]
    listed = await api_keys.page(KeyQuery(size=50))
    assert listed.total == 30
    await api_keys.delete(listed.records[:10])
    assert await users.usage(ids[0])
    await users.delete(ids)
    await api_keys.forget(listed.records)
    assert (await users.page(UserQuery(search="admin-"))).total == 0
    assert (await api_keys.page(KeyQuery())).total == 0


async def test_a_flushed_script_cache_heals_on_every_master(three: Cluster, link: ClusterLink) -> None:
    load = Load(link, list(one_on_each(three, "flushed-").values()))
    async with load.running():
        for _ in range(3):
            await load.has_gone_on(list(load.settled), 10)
            for node in three.masters:
                node.ask("SCRIPT", "FLUSH")
        await load.has_gone_on(list(one_on_each(three, "flushed-").values()), 10)
    await load.books_are_whole(list(load.settled))


async def test_slots_move_under_load_and_every_admission_counts_once(three: Cluster, link: ClusterLink) -> None:
    moving = [f"moving-{number}" for number in range(6)]
    load = Load(link, moving)
    async with load.running():
        await load.has_gone_on(moving, 5)
        for user_id in moving:
            slot = slot_of_user(user_id)
            owner = three.owner_of(slot)
            other = next(node for node in three.masters if node is not owner)
            await asyncio.to_thread(three.migrate, slot, other, keys_at_once=1)
            assert three.owner_of(slot) is other
        await load.has_gone_on(moving, 5)
    assert not load.failed
    await load.books_are_whole(moving)


async def test_a_command_for_a_slot_on_its_way_is_sent_again_until_it_is_there(
    three: Cluster, link: ClusterLink
) -> None:
    """TRYAGAIN, ASK and MOVED, each made to last."""
    users = Users(link)
    await create(users, "half")
    slot = slot_of_user("half")
    source = three.owner_of(slot)
    target = next(node for node in three.masters if node is not source)
    record = keys.user_keys("half").record
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", three.id_of(source))
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", three.id_of(target))
    source.ask("MIGRATE", "127.0.0.1", target.port, record, 0, 5_000)
    assert await link.call("HEXISTS", record, "v") == 1  # ASK
    half = asyncio.ensure_future(users.get("half"))
    await asyncio.sleep(0.05)
    assert not half.done()  # TRYAGAIN: the record is there, its doc is not
    source.ask("MIGRATE", "127.0.0.1", target.port, keys.user_keys("half").doc, 0, 5_000)
    for node in (target, source, *three.masters):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", three.id_of(target))
    found = await half
    assert found is not None
    assert found.record.user_id == "half"


async def test_a_slot_on_its_way_for_too_long_fails_its_calls_at_their_deadline(three: Cluster) -> None:
    async with linked(three, timeout_ms=300) as link:
        users = Users(link)
        await create(users, "stuck")
        slot = slot_of_user("stuck")
        source = three.owner_of(slot)
        target = next(node for node in three.masters if node is not source)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", three.id_of(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", three.id_of(target))
        source.ask("MIGRATE", "127.0.0.1", target.port, keys.user_keys("stuck").record, 0, 5_000)
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="in time"):
            await users.get("stuck")
        assert 0.3 <= time.monotonic() - started < 5
        for key in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
            source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5_000)
        for node in (target, source, *three.masters):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", three.id_of(target))
        assert (await users.get("stuck")) is not None


async def test_a_node_that_stops_answering_fails_its_own_users_alone(three: Cluster) -> None:
    on_each = one_on_each(three, "stopped-")
    stopped = three.masters[0]
    others = [user_id for port, user_id in on_each.items() if port != stopped.port]
    async with linked(three, timeout_ms=300) as link:
        load = Load(link, list(on_each.values()))
        async with load.running():
            await load.has_gone_on(list(on_each.values()), 5)
            before = load.failed.copy()
            with stopped.paused():
                await until(lambda: load.failed[on_each[stopped.port]] > before[on_each[stopped.port]])
                assert not link.is_up
                with pytest.raises(StoreUnavailableError):
                    await link.ready()
            await load.has_gone_on(list(on_each.values()), 5)
        assert [load.failed[user_id] for user_id in others] == [0, 0]
        await load.books_are_whole(list(on_each.values()))


async def test_calls_before_the_map_is_known_wait_for_it(three: Cluster) -> None:
    link = connect(three.url, timeout_ms=5_000)
    try:
        calls = [link.call("INCR", f"early-{number}") for number in range(20)]
        assert await asyncio.gather(*calls) == [1] * 20
    finally:
        await link.aclose()


async def test_a_seed_that_is_gone_does_not_matter(three: Cluster) -> None:
    link = connect(f"redis+cluster://127.0.0.1:1,127.0.0.1:{three.masters[1].port}", timeout_ms=5_000)
    try:
        await link.ready()
    finally:
        await link.aclose()


async def test_a_cluster_that_is_not_there_fails_every_call() -> None:
    link = connect("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    try:
        with pytest.raises(StoreUnavailableError, match="no node"):
            await link.ready()
        assert link.is_down
        assert link.call("GET", "x").done()
    finally:
        await link.aclose()
    with pytest.raises(StoreUnavailableError):
        await link.call("GET", "x")


async def test_the_calls_of_one_turn_leave_in_one_write_for_each_master(three: Cluster, link: ClusterLink) -> None:
    before = {node.port: _calls(node) for node in three.masters}
    await asyncio.gather(*(link.call("SET", f"turn-{number}", "x") for number in range(300)))
    assert sum(_calls(node) - before[node.port] for node in three.masters) == 300
    assert all(_calls(node) > before[node.port] for node in three.masters)


def _calls(node: Server) -> int:
    stats = node.ask("INFO", "commandstats")
    return int(stats.get("cmdstat_set", {"calls": 0})["calls"])


# Failover, with a cluster of its own.


@pytest.mark.parametrize("kind", ["valkey", "redis", "redis-6.2"])
async def test_a_killed_master_is_replaced_under_load_and_the_others_lose_nothing(kind: str) -> None:
    with cluster(kind, with_replicas=True) as whole:
        on_each = one_on_each(whole, "u")
        dead = whole.masters[0]
        theirs = on_each.pop(dead.port)
        others = list(on_each.values())
        async with linked(whole, timeout_ms=1_000) as link:
            load = Load(link, [theirs, *others])
            async with load.running():
                await load.has_gone_on([theirs, *others])
                dead.kill()
                await until(lambda: load.failed[theirs] > 0, wait_s=60)
                await load.has_gone_on([theirs, *others])
                await until(lambda: link.is_up, wait_s=60)
            requests, spent, _ = await load.spent(theirs)
            assert spent == requests * COST_NANOS <= load.settled[theirs] * COST_NANOS
            dead.start()
            await is_ready(link)
            whole.masters = whole.masters[1:]
            await load.books_are_whole(others)


async def test_a_slot_with_no_master_is_not_ready_and_comes_back() -> None:
    with cluster("valkey", "--cluster-require-full-coverage", "no") as whole:
        lost = whole.masters[2]
        async with linked(whole, timeout_ms=500) as link:
            lost.kill()
            await until(lambda: not link.is_up)
            with pytest.raises(StoreUnavailableError):
                await link.ready()
            slot = next(number for number in count() if whole.owner_of(key_slot(b"x%d" % number)) is whole.masters[0])
            assert await link.call("SET", f"x{slot}", "1") == b"OK"
            lost.start()
            await is_ready(link)


def test_no_script_is_ever_called_with_keys_of_two_slots() -> None:
    """All keys of a script share its first key's tag: the user's, or a catalogue's."""
    user = keys.user_keys("a b{}%")
    assert len({key_slot(key) for key in (user.record, user.doc, user.use, user.window, user.leases)}) == 1
    for name in ("users", "keys"):
        catalogue = keys.catalogue(name)
        assert len({key_slot(key) for key in (catalogue.base, catalogue.rows, catalogue.writing)}) == 1
    assert scripts.load("admit").sha
