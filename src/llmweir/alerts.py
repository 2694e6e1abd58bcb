"""Tells people what they asked to be told: a line in the log, and a POST to the webhook where there is one."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import aiohttp

from llmweir.money import format_usd, nanos_to_usd

_log = logging.getLogger("llmweir.alerts")
_TIMEOUT_S = 10


class Alerts:
    """Sends alerts; a webhook that does not answer is logged and costs no request anything."""

    def __init__(self, webhook_url: str | None) -> None:
        self._webhook_url = webhook_url
        self._sending: set[asyncio.Task[None]] = set()

    def soft_budget_crossed(self, user_id: str, spend_nanos: int, soft_budget_nanos: int) -> None:
        """A user's spend has passed the soft budget, for the first time in the period."""
        spend, limit = format_usd(spend_nanos), format_usd(soft_budget_nanos)
        _log.warning("soft_budget_crossed user_id=%r spend_usd=%s soft_budget_usd=%s", user_id, spend, limit)
        if self._webhook_url is None:
            return
        alert: dict[str, object] = {
            "text": f"User {user_id} has spent {spend} USD, past the soft budget of {limit} USD.",
            "event": "soft_budget_crossed",
            "user_id": user_id,
            "spend": nanos_to_usd(spend_nanos),
            "limit": nanos_to_usd(soft_budget_nanos),
            "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        task = asyncio.get_running_loop().create_task(self._post(self._webhook_url, alert))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def aclose(self) -> None:
        """Waits for the alerts that are on their way."""
        await asyncio.gather(*self._sending, return_exceptions=True)

    async def _post(self, url: str, alert: dict[str, object]) -> None:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as session,
                session.post(url, json=alert) as answer,
            ):
                if answer.status >= 400:
                    _log.warning("alert_refused event=%s status=%d", alert["event"], answer.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.warning("alert_not_sent event=%s error=%s", alert["event"], type(error).__name__)
