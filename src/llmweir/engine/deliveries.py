"""Settlements on their way to Redis: sent at once, kept and sent again until Redis has answered for them.

Nothing that was used may be lost, and sending a settlement twice changes nothing, so whatever goes wrong the answer is
the same: keep it, and try again when Redis is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator

from llmweir.engine import keys, scripts
from llmweir.engine.asks import Settlement, SoftBudgetCrossed
from llmweir.engine.link import Link, Reply
from llmweir.engine.packing import Blank, template
from llmweir.errors import StoreUnavailableError
from llmweir.remembered import Remembered

_log = logging.getLogger("llmweir.store")
_MOST_TEMPLATES = 20_000


class Delivery:
    """One settlement on its way; the link hands it the reply. Awaiting it gives the reply, which nobody has to."""

    __slots__ = ("_deliveries", "_over", "_waiter", "settlement")

    def __init__(self, deliveries: Deliveries, settlement: Settlement) -> None:
        self._deliveries = deliveries
        self._over: Reply | BaseException = None
        self._waiter: asyncio.Future[Reply] | None = None
        self.settlement = settlement

    def done(self) -> bool:
        """Whether there is a reply or an error."""
        return self._over is not None

    def set_result(self, reply: Reply) -> None:
        """Takes the reply."""
        self._over = reply
        self._deliveries.answered(self.settlement, reply)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(reply)

    def set_exception(self, error: BaseException) -> None:
        """Takes an error: the settlement is kept, to be sent again."""
        self._over = error
        self._deliveries.not_delivered(self.settlement, error)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def __await__(self) -> Generator[object, None, Reply]:
        if isinstance(self._over, BaseException):
            raise self._over
        if self._over is not None:
            return self._over
        if self._waiter is None:
            self._waiter = asyncio.get_running_loop().create_future()
        return (yield from self._waiter)


class Deliveries:
    """Sends the settlements of one worker, and keeps those that Redis has not answered for."""

    def __init__(self, link: Link) -> None:
        self.on_soft_budget: Callable[[SoftBudgetCrossed], None] | None = None
        self._link = link
        self._script = scripts.load("settle")
        self._templates: Remembered[tuple[str, bool, bool], bytes] = Remembered(_MOST_TEMPLATES)
        self._kept: deque[Settlement] = deque()
        self._on_the_way = 0
        self._none_on_the_way: asyncio.Future[None] | None = None

    def send(self, settlement: Settlement) -> Delivery:
        """Sends a settlement at the end of this event-loop turn."""
        delivery = Delivery(self, settlement)
        self._on_the_way += 1
        self._link.post(self._pack(settlement), delivery)
        return delivery

    def send_again(self) -> None:
        """Sends all that was kept."""
        kept, self._kept = self._kept, deque()
        for settlement in kept:
            self.send(settlement)

    def answered(self, settlement: Settlement, reply: Reply) -> None:
        """Takes note of a reply, which may say that a soft budget was crossed."""
        self._on_the_way -= 1
        if self._none_on_the_way is not None:
            self._tell_idle()
        if isinstance(reply, list) and len(reply) == 3 and self.on_soft_budget is not None:
            _, spend_nanos, soft_budget_nanos = reply
            self.on_soft_budget(SoftBudgetCrossed(settlement.user_id, _int(spend_nanos), _int(soft_budget_nanos)))

    def not_delivered(self, settlement: Settlement, error: BaseException) -> None:
        """Keeps a settlement; a script cache that was flushed is filled first, and then it is sent again at once."""
        self._kept.append(settlement)
        self._on_the_way -= 1
        if self._none_on_the_way is not None:
            self._tell_idle()
        if str(error).startswith("NOSCRIPT"):
            self._link.call(b"SCRIPT", b"LOAD", self._script.source).add_done_callback(self._script_loaded)
        elif not isinstance(error, StoreUnavailableError):
            _log.error("settlement_refused error=%r", str(error))

    @property
    def kept(self) -> int:
        """The number of settlements that wait to be sent again."""
        return len(self._kept)

    async def idle(self) -> None:
        """Waits until every settlement that was sent is answered, or kept."""
        if self._on_the_way:
            self._none_on_the_way = self._none_on_the_way or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._none_on_the_way)

    def _tell_idle(self) -> None:
        if not self._on_the_way and self._none_on_the_way is not None:
            self._none_on_the_way.set_result(None)
            self._none_on_the_way = None

    def _script_loaded(self, loaded: asyncio.Future[Reply]) -> None:
        if not loaded.cancelled() and loaded.exception() is None:
            self.send_again()

    def _pack(self, settlement: Settlement) -> bytes:
        constant = (settlement.user_id, settlement.failed, settlement.cancelled)
        packed = self._templates.get(constant)
        if packed is None:
            user = keys.user_keys(settlement.user_id)
            packed = self._templates[constant] = template(
                *(b"EVALSHA", self._script.sha, 2, user.record, user.leases, Blank.TEXT),
                *(Blank.NUMBER, Blank.NUMBER, Blank.NUMBER, int(settlement.failed), int(settlement.cancelled)),
            )
        request_id = settlement.request_id.encode()
        used = (settlement.input_tokens, settlement.output_tokens, settlement.cost_nanos)
        return packed % (len(request_id), request_id, *used)


def _int(reply: Reply) -> int:
    assert isinstance(reply, (int, bytes))  # noqa: S101 (the script's header says so)
    return int(reply)
