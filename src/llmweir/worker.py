"""One worker's share of everything behind the gate, built from the settings and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial

from llmweir.alerts import Alerts
from llmweir.engine.any_link import AnyLink
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.asks import SoftBudgetCrossed
from llmweir.engine.connect import connect
from llmweir.engine.embedded import EmbeddedValkey
from llmweir.engine.housekeeping import Housekeeping
from llmweir.engine.inspection import warnings_of
from llmweir.engine.known_callers import KnownCallers
from llmweir.engine.outbox import Outbox
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.engine.wire import ReplyError
from llmweir.errors import StoreUnavailableError
from llmweir.metrics import Metrics, Moment
from llmweir.settings import Settings

_log = logging.getLogger("llmweir.engine")
_FIRST_ANSWER_S = 5.0
"""How long the start waits for a Redis that neither answers nor refuses."""

_LAST_SETTLEMENTS_S = 5.0
"""How long settlements may take that are under way at the end; then they stay in the outbox."""


class Engine:
    """The store of one worker and what runs beside it: the bundled Valkey, the outbox, the leases, the alerts.

    It starts in the event loop that first needs it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._embedded: EmbeddedValkey | None = None
        self._housekeeping: Housekeeping | None = None
        self._known_callers: KnownCallers | None = None
        webhook = settings.alert_webhook_url
        self.metrics = Metrics()
        self._alerts = Alerts(webhook.get_secret_value() if webhook is not None else None)
        self._outbox: Outbox | None = None
        self.link: AnyLink
        self.store: Store
        self.users: Users
        self.keys: ApiKeys

    async def start(self) -> None:
        """Starts everything; a Redis of your own may be away, and is connected to when it is back.

        Raises StoreUnavailableError if the bundled Valkey does not start.
        """
        settings, memo_ttl_ms = self._settings, self._settings.memo_ttl_s * 1000
        self.link = connect(await self._url(), timeout_ms=settings.store_timeout_ms)
        if self._outbox is not None:  # of an event loop that ended without a word
            await asyncio.to_thread(self._outbox.close)
        outbox = self._outbox = Outbox(
            settings.data_dir / "outbox",
            fsync=settings.fsync,
            max_bytes=settings.outbox_max_bytes,
            max_age_ms=memo_ttl_ms,
        )
        if settings.on_store_failure == "open":
            self._known_callers = KnownCallers(settings.data_dir / "known-callers.sqlite")
        self.store = Store(
            self.link,
            lease_ttl_ms=settings.lease_ttl_s * 1000,
            memo_ttl_ms=memo_ttl_ms,
            shelf=outbox,
            known_callers=self._known_callers,
        )
        self.store.tell_soft_budgets(self._soft_budget_crossed)
        self.users = Users(self.link, memo_ttl_ms=memo_ttl_ms)
        self.store.on_leases_expired = self.users.data.on_leases_expired = self._leases_expired
        self.keys = ApiKeys(self.users)
        with contextlib.suppress(StoreUnavailableError, ReplyError, TimeoutError):
            async with asyncio.timeout(_FIRST_ANSWER_S):
                await self.store.load_scripts()
                for warning in await warnings_of(self.link):
                    _log.warning("redis_is_not_safe %s", warning)
        self._housekeeping = Housekeeping(
            self.link, self.store, outbox, self._known_callers, self._embedded, renew_s=settings.lease_renew_s
        )
        await asyncio.to_thread(outbox.adopt)
        self._housekeeping.start()
        self.store.send_kept()

    async def _url(self) -> str:
        settings = self._settings
        if settings.redis_url is not None:
            return settings.redis_url.get_secret_value()
        if self._embedded is None:
            start = partial(EmbeddedValkey.start, settings.data_dir, fsync=settings.fsync)
            self._embedded = await asyncio.to_thread(start)
        return self._embedded.url

    async def aclose(self) -> None:
        """Stops everything, the bundled Valkey last; what Redis has not answered for stays in the outbox."""
        housekeeping, self._housekeeping = self._housekeeping, None
        embedded, self._embedded = self._embedded, None
        if housekeeping is not None:
            await housekeeping.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_SETTLEMENTS_S):
                    await self.store.drain()
            await self.store.aclose()
            await self.link.aclose()
            if self._outbox is not None:
                await asyncio.to_thread(self._outbox.close)
            if self._known_callers is not None:
                await asyncio.to_thread(self._known_callers.close)
        await self._alerts.aclose()
        if embedded is not None:
            await asyncio.to_thread(embedded.close)

    def look(self) -> Moment:
        """How this worker stands right now, for its metrics."""
        outbox = self._outbox
        assert outbox is not None  # noqa: S101 (it has started)
        return Moment(
            in_flight=self.store.in_flight,
            is_store_up=self.link.is_up,
            outbox_records=outbox.records,
            outbox_bytes=outbox.bytes,
            outbox_set_aside=outbox.set_aside,
            outbox_failed_writes=outbox.failed_writes,
        )

    def _leases_expired(self, expired: int) -> None:
        self.metrics.leases_expired += expired

    def _soft_budget_crossed(self, crossed: SoftBudgetCrossed) -> None:
        self.metrics.soft_budgets_crossed += 1
        self._alerts.soft_budget_crossed(crossed.user_id, crossed.spend_nanos, crossed.soft_budget_nanos)
