"""`/health/*`: whether the process answers, and whether its store does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from llmweir.admin.access import Right
from llmweir.admin.routes import AdminRoute, Answer, Call
from llmweir.admin.shapes import Health
from llmweir.engine.wire import ReplyError
from llmweir.errors import StoreUnavailableError

Ping = Callable[[], Awaitable[None]]


class HealthRoutes:
    """Health, open to all; `ping` raises StoreUnavailableError or ReplyError while the store is not there.

    `is_open`: requests are let through then, so this process is ready all the same, and says that it is degraded.
    """

    def __init__(self, ping: Ping, version: str, *, is_open: bool = False) -> None:
        self._ping = ping
        self._is_open = is_open
        self._version = version

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """The rows of the table."""
        return (
            AdminRoute(
                method="GET",
                path="/health/liveliness",
                right=Right.OPEN,
                handle=self.liveliness,
                answer=Health,
                reads_store=False,
                summary="The process answers",
            ),
            AdminRoute(
                method="GET",
                path="/health/readiness",
                right=Right.OPEN,
                handle=self.readiness,
                answer=Health,
                also={503: Health},
                summary="200 while the store answers, else 503",
            ),
        )

    async def liveliness(self, _: Call) -> Answer:
        """The process answers."""
        return Answer(self._health("alive"))

    async def readiness(self, _: Call) -> Answer:
        """Answers 200 while the store answers, 503 otherwise, or 200 and degraded where requests are let through."""
        try:
            await self._ping()
        except StoreUnavailableError as error:
            return self._away(error.reason)
        except ReplyError as error:  # it is loading its data, or is full
            return self._away(f"it answers {str(error).split(maxsplit=1)[0]}")
        return Answer(self._health("healthy"))

    def _away(self, reason: str) -> Answer:
        status, code = ("degraded", 200) if self._is_open else ("unavailable", 503)
        return Answer({**self._health(status), "reason": reason}, code)

    def _health(self, status: str) -> Health:
        return {"status": status, "version": self._version, "litellm_version": self._version}
