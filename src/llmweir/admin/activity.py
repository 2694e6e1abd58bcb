"""What was used day by day and model by model, summed up and spelt as clients of the LiteLLM proxy expect it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import TypedDict

import msgspec

from llmweir import money
from llmweir.admin.lists import pages_of
from llmweir.engine.user_data import DayRow

EPOCH = date(1970, 1, 1).toordinal()
"""The days of the store are counted from here."""


class Metrics(TypedDict):
    """What was used: USD, tokens, requests."""

    spend: float
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    api_requests: int
    successful_requests: int
    failed_requests: int


class ModelActivity(TypedDict):
    """What was used of one model."""

    metrics: Metrics


class Breakdown(TypedDict):
    """What was used of each model; past a thousand of them in a day the rest share the name ""."""

    models: dict[str, ModelActivity]


class DayActivity(TypedDict):
    """What was used on one UTC day."""

    date: str
    metrics: Metrics
    breakdown: Breakdown


class ActivityMetadata(TypedDict):
    """The sums over all days asked for, whatever the page, and where the page stands."""

    total_spend: float
    total_prompt_tokens: int
    total_completion_tokens: int
    total_tokens: int
    total_api_requests: int
    total_successful_requests: int
    total_failed_requests: int
    page: int
    total_pages: int
    has_more: bool


class ActivityPage(TypedDict):
    """A page of the days on which something was used, newest first."""

    results: list[DayActivity]
    metadata: ActivityMetadata


class Tally(msgspec.Struct):
    """A running sum of rows."""

    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanos: int = 0

    def add(self, row: DayRow | Tally) -> None:
        """Counts a row, or another sum."""
        self.requests += row.requests
        self.failed += row.failed
        self.input_tokens += row.input_tokens
        self.output_tokens += row.output_tokens
        self.cost_nanos += row.cost_nanos

    def metrics(self) -> Metrics:
        """The sum as it is shown."""
        return {
            "spend": money.nanos_to_usd(self.cost_nanos),
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            "api_requests": self.requests,
            "successful_requests": self.requests - self.failed,
            "failed_requests": self.failed,
        }


class Activity:
    """Adds up the rows of any number of users; with a `model`, that model's alone."""

    def __init__(self, model: str | None = None) -> None:
        self._model = model
        self._days: dict[int, dict[str, Tally]] = {}

    def add(self, rows: Iterable[DayRow]) -> None:
        """Counts the rows of a user."""
        for row in rows:
            if self._model is None or row.model == self._model:
                self._days.setdefault(row.day, {}).setdefault(row.model, Tally()).add(row)

    def page(self, page: int, page_size: int) -> ActivityPage:
        """One page of the days, newest first, beside the sums over all of them."""
        newest_first = sorted(self._days, reverse=True)
        total_pages = max(1, pages_of(len(newest_first), page_size))
        shown = newest_first[(page - 1) * page_size : page * page_size]
        total = _sum(tally for models in self._days.values() for tally in models.values()).metrics()
        return {
            "results": [_day_json(day, self._days[day]) for day in shown],
            "metadata": {
                "total_spend": total["spend"],
                "total_prompt_tokens": total["prompt_tokens"],
                "total_completion_tokens": total["completion_tokens"],
                "total_tokens": total["total_tokens"],
                "total_api_requests": total["api_requests"],
                "total_successful_requests": total["successful_requests"],
                "total_failed_requests": total["failed_requests"],
                "page": page,
                "total_pages": total_pages,
                "has_more": page < total_pages,
            },
        }


def _day_json(day: int, models: dict[str, Tally]) -> DayActivity:
    return {
        "date": date.fromordinal(EPOCH + day).isoformat(),
        "metrics": _sum(models.values()).metrics(),
        "breakdown": {"models": {model: {"metrics": tally.metrics()} for model, tally in sorted(models.items())}},
    }


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total
