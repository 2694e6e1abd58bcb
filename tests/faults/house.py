"""A whole house for one test: workers, the wire, Redis, an upstream that keeps a tally; all of it gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from redis import Redis
from tests.faults.books import Books, read_books, what_does_not_balance
from tests.faults.calls import Admin
from tests.faults.stores import RedisProcess, redis_process
from tests.faults.tally import PRICES, Tally
from tests.faults.upstream import upstream
from tests.faults.waiting import until, until_async
from tests.faults.wire import Wire, wire_to
from tests.faults.workers import Worker

SETTINGS = {"reserve": "max", "lease_ttl_s": 2, "lease_renew_s": 1, "store_timeout_ms": 2000, "drain_timeout_s": 10}
"""Of the workers, where a test says nothing else: short leases, and patience with a busy machine."""


@dataclass
class House:
    """The parts of a house; `wire` and `store` are None where the workers have the bundled Valkey."""

    folder: Path
    tally: Tally
    workers: list[Worker]
    session: aiohttp.ClientSession
    settings: dict[str, object]
    store: RedisProcess | None = None
    wire_or_none: Wire | None = None

    @property
    def worker(self) -> Worker:
        """The first of the workers."""
        return self.workers[0]

    @property
    def admin(self) -> Admin:
        """Whoever has the master key."""
        return Admin(self.session)

    @property
    def wire(self) -> Wire:
        """The network between the workers and Redis."""
        assert self.wire_or_none is not None
        return self.wire_or_none

    @property
    def redis(self) -> RedisProcess:
        """The Redis of the house's own."""
        assert self.store is not None
        return self.store

    @property
    def client(self) -> Redis:
        """A connection to the store, past the wire."""
        return self.redis.client if self.store is not None else bundled_client(self.folder)

    def add_worker(self, **settings: object) -> Worker:
        """One more worker, which is not started yet, with settings of its own."""
        worker = Worker(self.folder, f"worker{len(self.workers)}", self.settings | settings)
        self.workers.append(worker)
        return worker

    def books(self, user_id: str) -> Books:
        """The books of a user as they lie there."""
        return read_books(self.client, user_id)

    async def at_work(self, user_id: str, requests: int) -> None:
        """Waits until the upstream is at work on so many requests of a user."""

        def running() -> int:
            return sum(served.ended_s is None for served in self.tally.of(user_id))

        await until(lambda: running() >= requests, f"{requests} requests of {user_id} at the upstream")

    async def all_ready(self) -> None:
        """Waits until every worker is ready."""
        await self.ready(*self.workers)

    async def ready(self, *workers: Worker) -> None:
        """Waits until these are ready."""
        for worker in workers:
            await until_async(lambda worker=worker: self.admin.is_ready(worker), "a worker is ready")  # type: ignore[misc]

    async def balanced(self, user_id: str, *, uncharged: int = 0, patience_s: float = 10.0) -> Books:
        """Waits until nothing of a user is in flight, and then has the books balance, or fails with what does not."""
        books: Books | None = None

        async def is_quiet() -> bool:
            nonlocal books
            looked = await self.admin.get(self.worker, f"/user/info?user_id={user_id}")  # what has expired takes effect
            books = self.books(user_id)
            return looked.status == 200 and not what_does_not_balance(books, self.tally, user_id, uncharged=uncharged)

        with contextlib.suppress(AssertionError):
            await until_async(is_quiet, "the books balance", patience_s=patience_s)
        assert books is not None
        assert what_does_not_balance(books, self.tally, user_id, uncharged=uncharged) == [], books
        return books

    async def check(self) -> list[object]:
        """What `llmweir check --books` finds wrong in the books of all users."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llmweir.cli", "check", "--books", "--json"),
            env=self.worker.environment,
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()
        books = json.loads(told)["books"]
        return [*books["findings"], *books["unlisted_users"], *books["unlisted_keys"]]


@contextlib.asynccontextmanager
async def house(
    folder: Path, *, workers: int = 1, bundled: bool = False, program: str = "redis-server", **settings: object
) -> AsyncIterator[House]:
    """Builds a house with so many workers that share one store and one data folder; `settings` are those of each.

    The store is the `program`, Redis or a server like it, behind a wire; or the bundled Valkey.
    """
    async with contextlib.AsyncExitStack() as stack:
        tally, store, wire = Tally(), None, None
        (folder / "prices.json").write_text(json.dumps(PRICES))
        given: dict[str, object] = {**SETTINGS, "data_dir": folder / "data", "price_file": folder / "prices.json"}
        given |= {"upstream": await stack.enter_async_context(upstream(tally)), "port": 0}
        if bundled:
            stack.push_async_callback(_bundled_gone, folder)
        else:
            store = await stack.enter_async_context(redis_process(folder / "redis", program))
            wire = await stack.enter_async_context(wire_to(store.port))
            given["redis_url"] = wire.url
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        built = House(folder, tally, [], session, given | settings, store, wire)
        stack.callback(_kill_all, built.workers)
        await asyncio.gather(*(built.add_worker().start() for _ in range(workers)))
        await built.all_ready()
        yield built


def bundled_client(folder: Path) -> Redis:
    """A connection to the bundled Valkey of a house."""
    return Redis(unix_socket_path=str(folder / "data" / "valkey.sock"), socket_timeout=10.0)


def bundled_processes(folder: Path) -> list[int]:
    """The keeper and the server of the bundled Valkey of a house: whatever works in its data folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder / "data":
                found.append(int(entry.name))
    return found


def kill_bundled(folder: Path) -> None:
    """Kills the keeper and its server with SIGKILL, at once."""
    for pid in bundled_processes(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def _bundled_gone(folder: Path) -> None:
    """Waits until the last user's end has ended the bundled Valkey; ends it where it has not."""
    with contextlib.suppress(AssertionError):
        await until(lambda: not bundled_processes(folder), "the bundled Valkey is gone", patience_s=10.0)
    kill_bundled(folder)
    shutil.rmtree(folder / "data", ignore_errors=True)


def _kill_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()
