"""Carries the outbox back to Redis, oldest first, whenever Redis answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from llmweir.engine import keys, scripts
from llmweir.engine.any_link import AnyLink, Argument, code_of
from llmweir.engine.asks import KeptSettlement, SoftBudgetCrossed
from llmweir.engine.replies import soft_budget_of
from llmweir.engine.wire import Reply, ReplyError
from llmweir.errors import StoreUnavailableError

TOMBSTONE_LIFE_MS: Final = 600_000
"""How long an admission may be under way after it was undone, and still count nothing."""

_BATCH = 200
_AFTER_SOME_FAILED_S = 5.0
_SCRIPT_FAULTS = frozenset(("ERR", "WRONGTYPE"))
_log = logging.getLogger("llmweir.store")


class Shelf(Protocol):
    """Where settlements are kept that Redis has not answered for, in order."""

    @property
    def has_room(self) -> bool:
        """Whether more may be kept."""

    @property
    def records(self) -> int:
        """How many are kept."""

    def keep(self, *kept: KeptSettlement) -> None:
        """Take some more."""

    def oldest(self, count: int) -> list[KeptSettlement]:
        """Give the oldest that are not confirmed."""

    def confirm(self, count: int) -> None:
        """Forget the first `count` of `oldest`."""

    def refuse_oldest(self) -> None:
        """Set the first of `oldest` aside: Redis will never take it."""


class MemoryShelf:
    """Keeps settlements in memory, for a store that has no folder."""

    def __init__(self) -> None:
        self._kept: deque[KeptSettlement] = deque()

    @property
    def has_room(self) -> bool:
        """Whether more may be kept."""
        return True

    @property
    def records(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def keep(self, *kept: KeptSettlement) -> None:
        """Takes some more."""
        self._kept.extend(kept)

    def oldest(self, count: int) -> list[KeptSettlement]:
        """Gives the oldest that are not confirmed."""
        return [self._kept[index] for index in range(min(count, len(self._kept)))]

    def confirm(self, count: int) -> None:
        """Forgets the first `count` of `oldest`."""
        for _ in range(min(count, len(self._kept))):
            self._kept.popleft()

    def refuse_oldest(self) -> None:
        """Drops the first of `oldest`."""
        self._kept.popleft()


class Replays:
    """Keeps settlements on a shelf, and settles them from there once Redis answers; one task at a time does that."""

    def __init__(self, link: AnyLink, shelf: Shelf, now_argument: Callable[[], Argument], memo_ttl_ms: int) -> None:
        self.on_soft_budget: Callable[[SoftBudgetCrossed], None] | None = None
        self._link = link
        self._shelf = shelf
        self._now_argument = now_argument
        self._memo_ttl_ms = memo_ttl_ms
        self._script = scripts.load("replay")
        self._task: asyncio.Task[None] | None = None
        self._new: list[KeptSettlement] = []
        self._not_before_s = 0.0

    @property
    def has_room(self) -> bool:
        """Whether more settlements may be kept."""
        return self._shelf.has_room

    @property
    def kept(self) -> int:
        """The number of settlements that wait for Redis."""
        return self._shelf.records + len(self._new)

    def keep(self, kept: KeptSettlement) -> None:
        """Keeps a settlement until Redis has answered for it; those of one event-loop turn go to the shelf together."""
        if not self._new:
            asyncio.get_running_loop().call_soon(self.wake)
        self._new.append(kept)

    def keep_at_once(self, kept: KeptSettlement) -> None:
        """Keeps a settlement that is nowhere else, before its answer leaves: no lease would tell of it."""
        self._shelf.keep(kept)
        asyncio.get_running_loop().call_soon(self.wake)

    def wake(self) -> None:
        """Shelves what is new, and sends what is kept, if Redis answers and that is not under way already."""
        if self._new:
            new, self._new = self._new, []
            self._shelf.keep(*new)
        may_send = self._task is None and not self._link.is_down and time.monotonic() >= self._not_before_s
        if may_send and self._shelf.records:
            self._task = asyncio.get_running_loop().create_task(self._replay_all())
            self._task.add_done_callback(self._ended)

    async def idle(self) -> None:
        """Waits until all that is kept is settled, or Redis does not answer."""
        self.wake()
        while self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def aclose(self) -> None:
        """Stops; what is kept stays on the shelf."""
        self.wake()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            _log.error("replay_failed", exc_info=task.exception())

    async def _replay_all(self) -> None:
        """Settles what is kept, once over; what one server of several cannot take goes to the end, for later."""
        settled, left = 0, self._shelf.records
        while left > 0 and (batch := self._shelf.oldest(min(_BATCH, left))):
            replies = await asyncio.gather(*map(self.settle, batch), return_exceptions=True)
            for kept, reply in zip(batch, replies, strict=True):
                if not isinstance(reply, BaseException):
                    self._tell_soft_budget(kept, reply)
                    self._shelf.confirm(1)
                    settled += 1
                elif not self._goes_on(kept, reply):
                    left = 0
                    break
            left -= len(batch)
        if settled:
            _log.info("settlements_replayed settlements=%d left=%d", settled, self._shelf.records)

    def _goes_on(self, kept: KeptSettlement, error: BaseException) -> bool:
        """Takes the first of the shelf away if it holds up the rest; else Redis is to be waited for."""
        if not isinstance(error, StoreUnavailableError | ReplyError):
            raise error
        if _is_script_fault(error):
            _log.error("settlement_refused request_id=%s error=%r", kept.request_id, str(error))
            self._shelf.refuse_oldest()
            return True
        if self._link.is_down or len(self._link.masters) < 2:
            return False
        self._shelf.keep(kept)
        self._shelf.confirm(1)
        self._not_before_s = time.monotonic() + _AFTER_SOME_FAILED_S
        return True

    async def settle(self, kept: KeptSettlement) -> Reply:
        """Settles what came from the shelf; a second time it changes nothing."""
        user = keys.user_keys(kept.user_id)
        return await self._link.run(
            self._script,
            *(user.record, user.use, user.window, user.leases),
            *(kept.request_id, self._now_argument(), kept.at_ms, kept.key_hash, kept.model),
            *(kept.input_tokens, kept.output_tokens, kept.cost_nanos),
            *(int(kept.failed), int(kept.cancelled), int(kept.may_be_done)),
            *(self._memo_ttl_ms, TOMBSTONE_LIFE_MS),
            keys=4,
        )

    def _tell_soft_budget(self, kept: KeptSettlement, reply: Reply) -> None:
        if self.on_soft_budget is not None and (crossed := soft_budget_of(kept.user_id, reply)):
            self.on_soft_budget(crossed)


def _is_script_fault(error: BaseException) -> bool:
    """Whether the script itself fails with this settlement, as it will each time."""
    text = str(error)
    is_of_script = isinstance(error, ReplyError) and code_of(error) in _SCRIPT_FAULTS
    return is_of_script and "user_script" in text and "killed" not in text
