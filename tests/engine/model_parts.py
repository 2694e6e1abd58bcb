"""What the model of the rules is made of: windows as lists of what happened, budgets as sums, and who has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from llmweir import durations

SPAN_S = 61
"""The running second and the 60 before it."""


class Want(NamedTuple):
    """What a request wants: tokens and nanos that must fit, and those to hold; -1 nanos = no price.

    `costs`: whether there was anything to hold before the hold was cut to what a budget has left. `key`: the name of
    the API key it comes with, "" = none.
    """

    model: str
    asked_tokens: int
    hold_tokens: int
    asked_nanos: int
    hold_nanos: int
    costs: bool = False
    key: str = ""


@dataclass
class OwnLimits:
    """The limits of one scope: the user's own, or an API key's."""

    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None
    budget: int | None = None
    duration: str | None = None
    anchor_ms: int = 0


@dataclass
class ModelBudget:
    limit: int
    duration: str | None = None
    anchor_ms: int = 0


@dataclass
class Limits(OwnLimits):
    model_rpm: dict[str, int] = field(default_factory=dict)
    model_tpm: dict[str, int] = field(default_factory=dict)
    model_budgets: dict[str, ModelBudget] = field(default_factory=dict)


class Event(NamedTuple):
    second: int
    requests: int
    tokens: int


@dataclass
class View:
    """A window as it stands in one second."""

    second: int
    last_second: int
    events: list[Event]

    @property
    def requests(self) -> int:
        return sum(event.requests for event in self.events)

    @property
    def tokens(self) -> int:
        return sum(event.tokens for event in self.events)

    def wait_ms(self, wanted: Event, limit: int, now_ms: int) -> int:
        """The time until the second in which there is room, if nothing else comes: tried one after the other."""
        for second in range(self.second + 1, self.second + SPAN_S + 1):
            left = [event for event in self.events if event.second > second - SPAN_S]
            counted = [event.requests if wanted.requests else event.tokens for event in left]
            if sum(counted) + max(wanted.requests, wanted.tokens) <= limit:
                break
        else:
            second = self.second + SPAN_S
        return second * 1_000 - now_ms


@dataclass
class Window:
    events: list[Event] = field(default_factory=list)
    last: int | None = None

    def view(self, second: int) -> View:
        """What is counted in `second`.

        When the clock ran back a little, the window waits for it; when it was set back by more than the span, all
        that is counted is taken to have happened now.
        """
        if self.last is None or second - self.last >= SPAN_S:
            return View(second, second, [])
        if self.last - second >= SPAN_S:
            return View(second, second, [event._replace(second=second) for event in self.events])
        second_shown = max(second, self.last)
        inside = [event for event in self.events if event.second > second_shown - SPAN_S]
        return View(second_shown, self.last, inside)

    def add(self, view: View, event: Event) -> None:
        self.events = [*view.events, event]
        self.last = view.second

    def correct(self, event: Event) -> None:
        """Change what was counted in a slot, while that slot is still inside the window."""
        if self.last is None or not self.last - SPAN_S < event.second <= self.last:
            return
        if any(counted.second == event.second for counted in self.events):
            self.events.append(event)


@dataclass
class Account:
    """Money of one budget in its period."""

    spent: int = 0
    held: int = 0
    period: int = 0
    ends_ms: int | None = None

    def is_over(self, now_ms: int) -> bool:
        return self.ends_ms is not None and now_ms >= self.ends_ms

    def restart(self, ends_ms: int | None) -> None:
        self.spent = self.held = 0
        self.period += 1
        self.ends_ms = ends_ms


@dataclass(eq=False)
class Scope:
    """What is counted of a user, of an entry of the per-model limits, or of an API key with limits."""

    window: Window = field(default_factory=Window)
    account: Account = field(default_factory=Account)


@dataclass(eq=False)
class Key:
    """An API key. It has a scope from when it first had a limit; until then only what it has spent is known."""

    limits: OwnLimits = field(default_factory=OwnLimits)
    blocked: bool = False
    unscoped_spend: int = 0
    scope: Scope | None = None

    @property
    def spent(self) -> int:
        return self.scope.account.spent if self.scope is not None else self.unscoped_spend

    @property
    def ends_ms(self) -> int | None:
        return self.scope.account.ends_ms if self.scope is not None else None

    def add(self, nanos: int) -> None:
        self.set_spend(self.spent + nanos)

    def set_spend(self, nanos: int) -> None:
        if self.scope is not None:
            self.scope.account.spent = nanos
        else:
            self.unscoped_spend = nanos

    def set_limits(self, limits: OwnLimits, now_ms: int) -> None:
        """A period starts now; the duration that holds already keeps the one that runs."""
        had, self.limits = self.limits, limits
        if self.scope is None and limits != OwnLimits():
            self.scope = Scope(account=Account(spent=self.unscoped_spend))
        if self.scope is not None and limits.duration != had.duration:
            limits.anchor_ms = now_ms
            self.scope.account.ends_ms = end_of_period(limits.duration, now_ms, now_ms)
        else:
            limits.anchor_ms = had.anchor_ms


class Part(NamedTuple):
    """A scope that a request counts in: in its window, and in this period of its budget (None: not there)."""

    scope: Scope
    in_window: bool
    period: int | None


@dataclass
class Reservation:
    second: int
    tokens: int
    nanos: int
    model: str
    expires_ms: int
    parts: list[Part]
    unscoped_key: Key | None


class Row(NamedTuple):
    """Limits that a request must fit under, and the scope where that is counted; those not in the way are None."""

    scope: Scope
    entry: str | None = None
    of_key: bool = False
    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None
    budget: int | None = None
    ends_ms: int | None = None


def end_of_period(duration: str | None, anchor_ms: int, now_ms: int) -> int | None:
    return None if duration is None else durations.period_end_ms(durations.parse(duration), anchor_ms, now_ms)
