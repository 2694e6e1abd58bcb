"""One user's page of the books: plain values, as they lie in Redis."""

from __future__ import annotations

import msgspec

DAY_MS = 86_400_000
DAYS_KEPT = 399
"""How far back the rows of all days are sure to be there: they expire 400 days after they began."""


class Account(msgspec.Struct, frozen=True, gc=False):
    """An account, as it lies there (`scripts.LAYOUTS`)."""

    second: int
    requests: int
    slot_requests: int
    tokens: int
    slot_tokens: int
    running: int
    held_nanos: int
    spent_nanos: int
    period: int
    ends_at_ms: int


class ModelUse(msgspec.Struct, frozen=True, gc=False):
    """What was used of a model: nanos in the user's period, and the row of the day that is kept beside them."""

    spent_nanos: int
    day: int
    requests: int
    failed: int
    input_tokens: int
    output_tokens: int
    nanos: int

    @property
    def row(self) -> tuple[int, ...]:
        """The row of the day, as the rows that lie by themselves."""
        return self.requests, self.failed, self.input_tokens, self.output_tokens, self.nanos


class Lease(msgspec.Struct, frozen=True):
    """A request in flight; `periods` has each account that it names and the period it is held in there."""

    request_id: str
    expires_at_ms: int
    nanos: int
    periods: dict[str, int]


class Day(msgspec.Struct, frozen=True):
    """The rows of a day: their nanos in all, and by model the rows that may have a number below 0."""

    day: int
    nanos: int
    doubtful: dict[str, tuple[int, ...]]


class Page(msgspec.Struct, frozen=True):
    """All that is counted of a user. `keys` are the API keys of the record by hash, `key_rows` those of the doc.

    `rings` has the windows' slots by account, `texts` what of the use hash is no account and no model. `unreadable`
    names what is not what it should be; the rest is complete only where that is empty.
    """

    user_id: str
    now_ms: int
    exists: bool
    left_behind: tuple[str, ...] = ()
    period: tuple[str, int] | None = None
    created_at_ms: int = 0
    email: str | None = None
    keys: dict[str, str] = {}
    key_rows: dict[str, str | None] = {}
    accounts: dict[str, Account] = {}
    models: dict[str, ModelUse] = {}
    numbers: dict[str, int] = {}
    leases: tuple[Lease, ...] = ()
    rings: dict[str, dict[int, int]] = {}
    days: tuple[Day, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def today(self) -> int:
        """The number of the UTC day since 1970-01-01."""
        return self.now_ms // DAY_MS
