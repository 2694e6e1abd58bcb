"""`GET /metrics`: what this worker has counted, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from llmweir.admin.access import Right
from llmweir.admin.routes import AdminRoute, Answer, Call
from llmweir.metrics import CONTENT_TYPE


class MetricsRoutes:
    """The metrics of this worker, as `scrape` writes them; for all where they are public."""

    def __init__(self, scrape: Callable[[], bytes], *, is_public: bool) -> None:
        self._scrape = scrape
        self._right = Right.OPEN if is_public else Right.READ_ALL

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """The rows of the table."""
        return (
            AdminRoute(
                method="GET",
                path="/metrics",
                right=self._right,
                handle=self.show,
                answer=str,
                answers_in=CONTENT_TYPE,
                reads_store=False,
                summary="Metrics of this worker for Prometheus",
            ),
        )

    async def show(self, _: Call) -> Answer:
        """All metrics as they are now."""
        return Answer(self._scrape())
