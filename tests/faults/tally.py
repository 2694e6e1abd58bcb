"""The independent tally: what the upstream itself saw of every request, to be held against the books.

Plain values. Nothing here asks llmweir or Redis; the request id is the one that llmweir sent along.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

INPUT_NANOS, OUTPUT_NANOS = 1_000, 2_000
"""Nano-dollars a token costs."""
MODEL = "weir-model"
PRICES = {MODEL: {"input": INPUT_NANOS / 1000, "output": OUTPUT_NANOS / 1000}}
"""The price file of the workers, in USD per million tokens."""


@dataclass
class Served:
    """One request at the upstream. Times are of the machine's monotonic clock, in seconds.

    `sent_s` is when its caller sent it: it was admitted somewhere between that and `arrived_s`.
    """

    request_id: str
    user_id: str
    sent_s: float
    arrived_s: float
    input_tokens: int
    output_tokens: int
    ended_s: float | None = None
    is_whole: bool = False
    """Whether the answer went out to its end."""

    @property
    def cost_nanos(self) -> int:
        """What it costs."""
        return self.input_tokens * INPUT_NANOS + self.output_tokens * OUTPUT_NANOS


@dataclass
class Tally:
    """All requests that the upstream has served, by request id."""

    served: dict[str, Served] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    """Request ids that came more than once."""

    def begin(self, served: Served) -> None:
        """Counts a request that has arrived."""
        if served.request_id in self.served:
            self.repeated.append(served.request_id)
        self.served[served.request_id] = served

    def of(self, user_id: str) -> list[Served]:
        """The requests of a user, in the order they arrived."""
        return [served for served in self.served.values() if served.user_id == user_id]

    def cost_nanos(self, user_id: str) -> int:
        """What all of a user's requests cost."""
        return sum(served.cost_nanos for served in self.of(user_id))

    def most_in_flight(self, user_id: str) -> int:
        """The most requests of a user that the upstream was at work on at once."""
        moves: list[tuple[float, int]] = []
        for served in self.of(user_id):
            moves.append((served.arrived_s, 1))
            if served.ended_s is not None:
                moves.append((served.ended_s, -1))
        return max(itertools.accumulate(move for _, move in sorted(moves)), default=0)

    def most_in_a_minute(self, user_id: str) -> int:
        """The most requests of a user that were certainly admitted within one span of 60 s, wherever it begins.

        Certainly: all of them were sent and had arrived inside that span.
        """
        requests = self.of(user_id)
        return max((_between(requests, first.sent_s, first.sent_s + 60.0) for first in requests), default=0)


def _between(requests: list[Served], since_s: float, until_s: float) -> int:
    return sum(since_s <= served.sent_s and served.arrived_s < until_s for served in requests)
