"""What a worker does beside serving: leases renewed, kept settlements sent, files written, once every so often."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from llmweir.engine.embedded import EmbeddedValkey
from llmweir.engine.known_callers import KnownCallers
from llmweir.engine.link import AnyLink, ReplyError
from llmweir.engine.outbox import Outbox
from llmweir.engine.store import Store
from llmweir.errors import StoreUnavailableError

_log = logging.getLogger("llmweir.engine")
_TURN_S = 1.0
"""How often the disk is to have what was written, at least."""

_ADOPT_S = 5.0
"""How often to look for what dead workers have left."""


class Housekeeping:
    """The tasks of one worker's event loop; `embedded` is its share in the bundled Valkey, if there is one."""

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
        self._adopt_at_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the tasks in the running event loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._renew_leases()), loop.create_task(self._tidy())]

    async def stop(self) -> None:
        """Stops the tasks."""
        self._is_stopping = True
        running = [task for task in self._tasks if not task.done()]  # none where their event loop has ended
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _renew_leases(self) -> None:
        """Renews in time whatever happens on the disk meanwhile; it also ends the link with its event loop."""
        try:
            while True:
                await asyncio.sleep(self._renew_s / 2)
                await self._renew_once()
        finally:
            if not self._is_stopping:  # an event loop that ends without a word
                await self._link.aclose()

    async def _renew_once(self) -> None:
        try:
            await self._store.renew(older_than_s=self._renew_s / 2)
        except StoreUnavailableError:
            return  # the link has said so
        except ReplyError as error:
            _log.error("renewal_refused error=%r", str(error))

    async def _tidy(self) -> None:
        while True:
            await self._tidy_once()
            await asyncio.sleep(_TURN_S)

    async def _tidy_once(self) -> None:
        await self._in_thread(self._outbox.sync)
        if time.monotonic() >= self._adopt_at_s:
            self._adopt_at_s = time.monotonic() + _ADOPT_S
            await self._in_thread(self._outbox.adopt)
            if self._embedded is not None and not self._link.is_up:
                await self._in_thread(self._embedded.ensure_running)
        if self._known_callers is not None:
            await self._in_thread(self._known_callers.flush)
        self._store.send_kept()

    async def _in_thread(self, act: Callable[[], object]) -> None:
        try:
            await asyncio.to_thread(act)
        except (OSError, StoreUnavailableError) as error:
            _log.error("housekeeping_failed error=%r", str(error))
