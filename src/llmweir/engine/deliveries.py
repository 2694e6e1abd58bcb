"""Settlements on their way to Redis: sent at once; those that Redis does not answer for go to the outbox.

Nothing that was used may be lost, and nothing charged twice. A settlement that is sent finds the lease of its request
and removes it: that makes it happen once. One that comes from the outbox, or finds no lease where there must be one,
leaves its id behind instead (`replay.lua`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Generator

import hiredis
import msgspec

from llmweir.engine import keys, scripts
from llmweir.engine.any_link import AnyLink, Argument, says_unavailable
from llmweir.engine.asks import Ask, KeptSettlement, Settlement, SoftBudgetCrossed
from llmweir.engine.packing import Blank, template
from llmweir.engine.replays import TOMBSTONE_LIFE_MS, Replays
from llmweir.engine.replies import soft_budget_of
from llmweir.engine.wall_clock import wall_clock_ms
from llmweir.engine.wire import Reply, ignore
from llmweir.errors import StoreUnavailableError
from llmweir.remembered import Remembered

_log = logging.getLogger("llmweir.store")
_MOST_TEMPLATES = 20_000
_SETTLED: Reply = [1]
_NOTHING_TO_SETTLE: Reply = [0]


class Admission(msgspec.Struct, frozen=True, gc=False):
    """What a worker remembers of a request in flight; `is_let_through`: Redis was away, so it has no lease of it."""

    ask: Ask
    admitted_s: float
    is_let_through: bool = False


class Delivery:
    """One settlement on its way; the link hands it the reply. Awaiting it gives the reply, which nobody has to.

    `may_be_done`: Redis may have carried it out, though it has not said so.
    """

    __slots__ = ("_deliveries", "_over", "_waiter", "admission", "is_sent_again", "may_be_done", "settlement")

    def __init__(self, deliveries: Deliveries, settlement: Settlement, admission: Admission | None) -> None:
        self._deliveries = deliveries
        self._over: Reply | BaseException = None
        self._waiter: asyncio.Future[Reply] | None = None
        self.settlement = settlement
        self.admission = admission
        self.may_be_done = False
        self.is_sent_again = False

    def done(self) -> bool:
        """Whether there is a reply or an error."""
        return self._over is not None

    def set_result(self, reply: Reply) -> None:
        """Takes the reply."""
        self._over = reply
        self._deliveries.answered(self, reply)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(reply)

    def set_exception(self, error: BaseException) -> None:
        """Takes an error: the settlement is kept, or sent again with its script."""
        if not self.is_sent_again and str(error).startswith("NOSCRIPT"):
            self.is_sent_again = True
            self._deliveries.load_and_send(self)
            return
        self._over = error
        self._deliveries.not_delivered(self, error)
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

    def kept(self) -> KeptSettlement:
        """The settlement as the outbox keeps it."""
        settlement, admission = self.settlement, self.admission
        at_ms = 0
        if admission is not None:
            at_ms = self._deliveries.now_ms() - int((time.monotonic() - admission.admitted_s) * 1000)
        return KeptSettlement(
            request_id=settlement.request_id,
            user_id=settlement.user_id,
            key_hash=admission.ask.key_hash if admission is not None else "",
            model=admission.ask.target if admission is not None else "",
            at_ms=at_ms,
            input_tokens=settlement.input_tokens,
            output_tokens=settlement.output_tokens,
            cost_nanos=settlement.cost_nanos,
            failed=settlement.failed,
            cancelled=settlement.cancelled,
            may_be_done=self.may_be_done,
        )


class Deliveries:
    """Sends the settlements of one worker; what Redis does not answer for goes to `replays`."""

    def __init__(self, link: AnyLink, replays: Replays, now_argument: Callable[[], Argument]) -> None:
        self.on_soft_budget: Callable[[SoftBudgetCrossed], None] | None = None
        self._link = link
        self._replays = replays
        self._now_argument = now_argument
        self._settle = scripts.load("settle")
        self._cancel = scripts.load("cancel")
        self._templates: Remembered[tuple[str, bool], bytes] = Remembered(_MOST_TEMPLATES)
        self._on_the_way = 0
        self._none_on_the_way: asyncio.Future[None] | None = None

    def send(self, settlement: Settlement, admission: Admission | None) -> Delivery:
        """Sends a settlement at the end of this event-loop turn.

        `admission` is what is known of its request: None where that was settled before, or never was admitted.
        """
        delivery = Delivery(self, settlement, admission)
        self._on_the_way += 1
        if admission is not None and admission.is_let_through:
            self._replay(delivery)
        else:
            self._link.post(self._pack(settlement), delivery)
        return delivery

    def answered(self, delivery: Delivery, reply: Reply) -> None:
        """Takes note of a reply; of a lease that should be there and is not, and of a soft budget that was crossed."""
        self._on_the_way -= 1
        if self._none_on_the_way is not None:
            self._tell_idle()
        if reply == _SETTLED:
            return
        if reply == _NOTHING_TO_SETTLE:
            if delivery.admission is not None and not delivery.settlement.cancelled:
                _log.warning("lease_lost request_id=%s", delivery.settlement.request_id)
                self._replays.keep(delivery.kept())
        elif self.on_soft_budget is not None and (crossed := soft_budget_of(delivery.settlement.user_id, reply)):
            self.on_soft_budget(crossed)

    def not_delivered(self, delivery: Delivery, error: BaseException) -> None:
        """Keeps a settlement."""
        self._on_the_way -= 1
        if self._none_on_the_way is not None:
            self._tell_idle()
        if isinstance(error, StoreUnavailableError):
            delivery.may_be_done = error.may_be_done or delivery.admission is None
        else:
            _log.error("settlement_refused error=%r", str(error))
            delivery.may_be_done = not says_unavailable(error)
        self._replays.keep(delivery.kept())

    def now_ms(self) -> int:
        """The time by this worker's clock."""
        now = self._now_argument()
        return now if isinstance(now, int) else wall_clock_ms()

    def load_and_send(self, delivery: Delivery) -> None:
        """Fills a script cache that was flushed, and sends a settlement again in the same turn."""
        script = self._cancel if delivery.settlement.cancelled else self._settle
        self._link.call(b"SCRIPT", b"LOAD", script.source).add_done_callback(ignore)
        self._link.post(self._pack(delivery.settlement), delivery)

    async def idle(self) -> None:
        """Waits until every settlement that was sent is answered, or kept."""
        if self._on_the_way:
            self._none_on_the_way = self._none_on_the_way or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._none_on_the_way)

    def _tell_idle(self) -> None:
        if not self._on_the_way and self._none_on_the_way is not None:
            self._none_on_the_way.set_result(None)
            self._none_on_the_way = None

    def _replay(self, delivery: Delivery) -> None:
        self._replays.keep_at_once(delivery.kept())
        delivery.set_result(_SETTLED)

    def _pack(self, settlement: Settlement) -> bytes:
        if settlement.cancelled:
            return self._pack_cancel(settlement)
        constant = (settlement.user_id, settlement.failed)
        packed = self._templates.get(constant)
        if packed is None:
            user = keys.user_keys(settlement.user_id)
            packed = self._templates[constant] = template(
                *(b"EVALSHA", self._settle.sha, 2, user.record, user.leases, Blank.TEXT),
                *(Blank.NUMBER, Blank.NUMBER, Blank.NUMBER, int(settlement.failed)),
            )
        request_id = settlement.request_id.encode()
        used = (settlement.input_tokens, settlement.output_tokens, settlement.cost_nanos)
        return packed % (len(request_id), request_id, *used)

    def _pack_cancel(self, settlement: Settlement) -> bytes:
        user = keys.user_keys(settlement.user_id)
        arguments = (settlement.request_id, self._now_argument(), TOMBSTONE_LIFE_MS)
        packed: bytes = hiredis.pack_command((b"EVALSHA", self._cancel.sha, 2, user.record, user.leases, *arguments))  # type: ignore[arg-type]  # its stub means one item
        return packed
