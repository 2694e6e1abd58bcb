from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import pytest
from tests.backends import load_all_scripts
from tests.engine.asking import an_ask, create, passes
from tests.engine.asking import user as read_user
from tests.engine.test_link import answers, until
from tests.redis_forms import Pair, SentinelServer, replicated, wait_for

from llmweir.engine.any_link import AnyLink
from llmweir.engine.asks import Settlement
from llmweir.engine.connect import connect
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.errors import StoreUnavailableError

pytestmark = [pytest.mark.timeout(180), pytest.mark.faults]
KINDS = pytest.mark.parametrize("kind", ["valkey", "redis", "redis-6.2"])


@pytest.fixture
def kind() -> str:
    return "valkey"


@pytest.fixture
def watched(kind: str) -> Iterator[Pair]:
    """Give a master and its replica, watched by three sentinels."""
    with replicated(kind, sentinels=3) as pair:
        yield pair


async def spend(link: AnyLink, request_id: str, nanos: int) -> None:
    """Admit a request and settle it, again until both are answered; asked twice it counts once."""
    store = Store(link)
    async with asyncio.timeout(60):
        while True:
            try:
                await passes(store, an_ask(request_id, nanos=50))
                await store.settle(Settlement(request_id=request_id, user_id="u", cost_nanos=nanos))
            except StoreUnavailableError:
                await asyncio.sleep(0.01)
            else:
                return


async def spent(link: AnyLink) -> tuple[int, int]:
    record = (await read_user(Users(link))).record
    return record.spend_nanos, record.reserved_nanos


def fail_over(pair: Pair, sentinels: Sequence[SentinelServer]) -> None:
    """Have sentinels promote the replica, and demote the master at once; left alone they take ten seconds for that."""
    (replica,) = pair.replicas
    sentinels[0].ask("SENTINEL", "FAILOVER", "main")
    for sentinel in sentinels:
        wait_for(lambda: sentinel.master_port() == replica.port, "a failover")  # noqa: B023 (called at once)
    pair.master.ask("REPLICAOF", "127.0.0.1", replica.port)


@KINDS
async def test_the_link_comes_to_the_new_master_when_the_old_one_is_killed(watched: Pair) -> None:
    link = connect(watched.sentinel_url, timeout_ms=500)
    try:
        await load_all_scripts(link)
        await create(Users(link))
        await spend(link, "before", 7)
        wait_for(watched.is_in_step, "a replica in step")
        watched.master.kill()
        await until(lambda: not link.is_up)
        await until(lambda: link.is_up, wait_s=60)
        assert watched.sentinels[0].master_port() == watched.replicas[0].port
        await load_all_scripts(link)
        await spend(link, "after", 5)
        assert await spent(link) == (12, 0)
    finally:
        await link.aclose()


async def test_an_outage_says_why_and_leaves_no_admission_behind(watched: Pair) -> None:
    link = connect(watched.sentinel_url, timeout_ms=300)
    try:
        await load_all_scripts(link)
        await create(Users(link), rpm_limit=3)
        wait_for(watched.is_in_step, "a replica in step")
        store = Store(link)
        watched.master.kill()
        await until(lambda: link.is_down)
        for number in range(10):
            with contextlib.suppress(StoreUnavailableError):
                await store.admit(an_ask(f"away-{number}"))
                await store.settle(Settlement(request_id=f"away-{number}", user_id="u", cancelled=True))
        await until(lambda: link.is_up, wait_s=60)
        await load_all_scripts(link)
        store.send_kept()
        await store.drain()
        assert (await passes(store, an_ask("next"))).standing.rpm_used == 1
    finally:
        await link.aclose()


@KINDS
async def test_a_master_that_was_demoted_but_still_answers_is_left_for_the_new_one(watched: Pair) -> None:
    link = connect(watched.sentinel_url, timeout_ms=500)
    try:
        await load_all_scripts(link)
        await create(Users(link))
        wait_for(watched.is_in_step, "a replica in step")
        fail_over(watched, watched.sentinels)
        await spend(link, "after", 5)
        assert await spent(link) == (5, 0)
        info = await link.call("INFO", "replication")
        assert isinstance(info, bytes)
        assert b"role:master" in info
    finally:
        await link.aclose()


async def test_a_sentinel_that_has_not_heard_of_the_failover_is_not_believed(watched: Pair) -> None:
    """The first one named is stopped while the others fail over; then it alone is asked first, and is wrong."""
    stale, *others = watched.sentinels
    wait_for(watched.is_in_step, "a replica in step")
    with stale.paused():
        fail_over(watched, others)
        link = connect(watched.sentinel_url, timeout_ms=3_000)
        try:
            await create(Users(link))  # a stopped sentinel holds nobody up for long
        finally:
            await link.aclose()
    link = connect(watched.sentinel_url, timeout_ms=3_000)
    try:
        await answers(link)
        assert await link.call("SET", "x", "1") == b"OK"
    finally:
        await link.aclose()


async def test_the_sentinels_login_is_theirs_alone_and_one_right_is_enough(watched: Pair) -> None:
    for sentinel in watched.sentinels:
        sentinel.ask("ACL", "SETUSER", "watcher", "reset", "on", ">s/w", "+sentinel|masters")
        sentinel.ask("ACL", "SETUSER", "default", "off")
    query = "sentinel_username=watcher&sentinel_password=s%2Fw"
    link = connect(f"{watched.sentinel_url}?{query}", timeout_ms=3_000)
    wrong = connect(f"{watched.sentinel_url}?{query}x", timeout_ms=3_000)
    try:
        await link.ready()
        with pytest.raises(StoreUnavailableError):
            await wrong.ready()
    finally:
        await link.aclose()
        await wrong.aclose()


async def test_sentinels_that_know_no_such_master_open_the_circuit(watched: Pair) -> None:
    link = connect(watched.sentinel_url.replace("/main", "/other"), timeout_ms=3_000)
    try:
        with pytest.raises(StoreUnavailableError, match="no sentinel names a master"):
            await link.ready()
    finally:
        await link.aclose()


@KINDS
async def test_a_read_only_replica_is_refused_until_it_is_promoted(kind: str) -> None:
    with replicated(kind) as pair:
        replica = pair.replicas[0]
        link = connect(f"redis://127.0.0.1:{replica.port}", timeout_ms=3_000)
        try:
            with pytest.raises(StoreUnavailableError, match="it is a read-only replica"):
                await link.ready()
            await asyncio.sleep(0)
            with pytest.raises(StoreUnavailableError, match="it is a read-only replica"):
                await link.ready()
            replica.ask("REPLICAOF", "NO", "ONE")
            loop = asyncio.get_running_loop()
            promoted_s = loop.time()
            await until(lambda: link.is_up)
            assert loop.time() - promoted_s < 5  # a second apart at most, and a busy machine
            assert await link.call("SET", "x", "1") == b"OK"
        finally:
            await link.aclose()


@KINDS
async def test_a_master_that_becomes_a_replica_opens_the_circuit_with_the_first_script_that_writes(kind: str) -> None:
    with replicated(kind) as pair:
        link = connect(f"redis://127.0.0.1:{pair.master.port}", timeout_ms=3_000)
        try:
            await load_all_scripts(link)
            await create(Users(link))
            wait_for(pair.is_in_step, "a replica in step")
            store = Store(link)
            pair.replicas[0].ask("REPLICAOF", "NO", "ONE")
            pair.master.ask("REPLICAOF", "127.0.0.1", pair.replicas[0].port)
            with pytest.raises(StoreUnavailableError):
                await store.admit(an_ask("r"))
            assert link.is_down
            await _refused_as_a_replica(link)
            pair.master.ask("REPLICAOF", "NO", "ONE")
            await until(lambda: link.is_up)
        finally:
            await link.aclose()


async def _refused_as_a_replica(link: AnyLink) -> None:
    with pytest.raises(StoreUnavailableError, match="it is a read-only replica"):
        await link.ready()


async def test_probes_of_a_server_that_takes_no_writes_are_no_busy_loop() -> None:
    with replicated("valkey") as pair:
        replica = pair.replicas[0]
        link = connect(f"redis://127.0.0.1:{replica.port}", timeout_ms=3_000)
        try:
            with pytest.raises(StoreUnavailableError):
                await link.ready()
            before = int(replica.ask("INFO", "stats")["total_connections_received"])
            loop = asyncio.get_running_loop()
            end_s = loop.time() + 2
            await until(lambda: loop.time() > end_s)
            assert int(replica.ask("INFO", "stats")["total_connections_received"]) - before < 12
        finally:
            await link.aclose()
