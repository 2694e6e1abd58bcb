"""What a worker does beside serving: leases renewed, kept settlements sent, files written, once every so often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from llmweir.engine.any_link import AnyLink
from llmweir.engine.embedded import EmbeddedValkey
from llmweir.engine.known_callers import KnownCallers
from llmweir.engine.outbox import Outbox
from llmweir.engine.store import Store
from llmweir.errors import StoreUnavailableError

_log = logging.getLogger("llmweir.engine")
_WRITE_S = 0.5
"""How often the disk is to have what was written, so that it has it within a second."""

_ADOPT_S = 5.0
"""How often to look for what dead workers have left, and whether the bundled Valkey is there."""


class Housekeeping:
    """The tasks of one worker's event loop; `embedded` is its share in the bundled Valkey, if there is one.

    They are separate: a disk or a server that takes its time must not keep a lease from being renewed.
    """

    def __init__(
        self,
        link: AnyLink,
        store: Store,
        outbox: Outbox,
        known_callers: KnownCallers | None,
        embedded: EmbeddedValkey | None,
        *,
        renew_s: float,
    ) -> None:
        self._link = link
        self._store = store
        self._outbox = outbox
        self._known_callers = known_callers
        self._embedded = embedded
        self._renew_s = renew_s
        self._is_stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._in_threads: set[asyncio.Future[object]] = set()

    def start(self) -> None:
        """Starts the tasks in the running event loop."""
        jobs = ((self._renew, self._renew_s / 2), (self._write, _WRITE_S), (self._look_after, _ADOPT_S))
        self._tasks = [asyncio.create_task(self._repeat(job, pause_s)) for job, pause_s in jobs]

    async def stop(self) -> None:
        """Stops the tasks; what a thread has begun is done when this returns."""
        self._is_stopping = True
        running = [task for task in self._tasks if not task.done()]  # none where their event loop has ended
        for task in running:
            task.cancel()
        working = [future for future in self._in_threads if not future.done()]
        await asyncio.gather(*running, *working, return_exceptions=True)

    async def _repeat(self, job: Callable[[], Awaitable[None]], pause_s: float) -> None:
        try:
            while True:
                await asyncio.sleep(pause_s)
                try:
                    await job()
                except StoreUnavailableError:
                    continue  # the link has said so
                except Exception:  # noqa: BLE001 (whatever it was, the next turn comes)
                    _log.exception("housekeeping_failed job=%s", job.__name__.strip("_"))
        finally:
            if not self._is_stopping:  # an event loop that ends without a word
                await self._link.aclose()

    async def _renew(self) -> None:
        await self._store.renew(older_than_s=self._renew_s / 2)

    async def _write(self) -> None:
        self._store.send_kept()
        await self._in_thread(self._outbox.sync)
        if self._known_callers is not None:
            await self._in_thread(self._known_callers.flush)

    async def _look_after(self) -> None:
        await self._in_thread(self._outbox.adopt)
        if self._embedded is not None and not self._link.is_up:
            await self._in_thread(partial(self._embedded.ensure_running, timeout_s=_ADOPT_S))

    async def _in_thread(self, act: Callable[[], object]) -> None:
        """Waits for a thread that is not cancelled with its task: it would go on alone, in what is being closed."""
        working = asyncio.ensure_future(asyncio.to_thread(act))
        self._in_threads.add(working)
        working.add_done_callback(self._in_threads.discard)
        await asyncio.shield(working)
