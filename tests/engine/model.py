"""The rules of admission in plain Python: what the scripts are tested against.

A window is a list of what happened, a budget a sum; whatever can be counted anew is counted anew. Written from the
contract, not from the scripts: nothing here is fast, and nothing is kept that follows from something else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from llmweir import durations
from llmweir.decision import CallerRefused, LimitName, LimitRefused, LimitState, Standing

SPAN_S = 61
"""The running second and the 60 before it."""

Refusal = LimitRefused | CallerRefused


class Want(NamedTuple):
    """What a request wants: tokens and nanos that must fit, and those to hold; -1 nanos = no price.

    `costs`: whether there was anything to hold before the hold was cut to what a budget has left.
    """

    model: str
    asked_tokens: int
    hold_tokens: int
    asked_nanos: int
    hold_nanos: int
    costs: bool = False


@dataclass
class ModelBudget:
    limit: int
    duration: str | None = None
    anchor_ms: int = 0


@dataclass
class Limits:
    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None
    budget: int | None = None
    duration: str | None = None
    anchor_ms: int = 0
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

    def restart(self, ends_ms: int | None) -> None:
        self.spent = self.held = 0
        self.period += 1
        self.ends_ms = ends_ms


@dataclass
class Reservation:
    second: int
    tokens: int
    nanos: int
    model: str
    expires_ms: int
    windows: tuple[str, ...]
    period: int
    entry: str | None
    entry_period: int


@dataclass
class Obstacle:
    """A limit that is in the way."""

    state: LimitState
    kind: Literal["wait", "stop", "never"]
    wait_ms: int

    @property
    def weight(self) -> tuple[int, float]:
        severity = ("wait", "stop", "never").index(self.kind)
        return severity, float("inf") if self.wait_ms < 0 else self.wait_ms


def entry_for(model: str, entries: Iterable[str]) -> str | None:
    """The entry of a per-model limit that holds for a model: its own name, else the longest prefix."""
    matching = [entry for entry in entries if _matches(entry, model)]
    return max(matching, key=lambda entry: (entry == model, len(entry)), default=None)


def _matches(entry: str, model: str) -> bool:
    return entry == model or (entry.endswith("*") and model.startswith(entry[:-1]))


class Rules:
    """One user."""

    def __init__(self, *, lease_ttl_ms: int) -> None:
        self.lease_ttl_ms = lease_ttl_ms
        self.limits = Limits()
        self.windows: dict[str, Window] = {"": Window()}
        self.account = Account()
        self.adjustment = 0
        self.model_spend: dict[str, int] = {}
        self.accounts: dict[str, Account] = {}
        self.leases: dict[str, Reservation] = {}
        self.expired: dict[str, Reservation] = {}

    # The lazy part: what the passing of time alone has done.

    def catch_up(self, now_ms: int) -> None:
        for request_id in [each for each, held in self.leases.items() if held.expires_ms <= now_ms]:
            held = self.expired[request_id] = self.leases.pop(request_id)
            self._charge(held, nanos=held.nanos, release=held.nanos)
        account = self.account
        if account.ends_ms is not None and now_ms >= account.ends_ms:
            account.restart(_end(self.limits.duration, self.limits.anchor_ms, now_ms))
            self.adjustment = 0
            self.model_spend.clear()
            for entry in self.accounts.values():
                if entry.ends_ms is None:
                    entry.restart(None)
        for name, entry in self.accounts.items():
            if entry.ends_ms is not None and now_ms >= entry.ends_ms:
                budget = self.limits.model_budgets.get(name, ModelBudget(0))
                entry.restart(_end(budget.duration, budget.anchor_ms, now_ms))

    # Changes of the record.

    def set_period(self, duration: str | None, now_ms: int) -> None:
        """A period starts now; the duration that holds already keeps the one that runs."""
        if duration == self.limits.duration:
            return
        self.limits.duration, self.limits.anchor_ms = duration, now_ms
        self.account.ends_ms = _end(duration, now_ms, now_ms)

    def set_spend(self, nanos: int) -> None:
        self.adjustment += nanos - self.account.spent
        self.account.spent = nanos

    def set_model_budgets(self, budgets: dict[str, tuple[int, str | None]], now_ms: int) -> None:
        had, self.limits.model_budgets = self.limits.model_budgets, {}
        for entry, (limit, duration) in budgets.items():
            before = had.get(entry)
            account = self.accounts.setdefault(entry, Account())
            budget = self.limits.model_budgets[entry] = ModelBudget(limit, duration, now_ms)
            if duration is not None and before is not None and before.duration == duration:
                budget.anchor_ms = before.anchor_ms
            else:
                account.ends_ms = _end(duration, now_ms, now_ms)
            if before is None:
                account.spent = sum(
                    spent for model, spent in self.model_spend.items() if entry_for(model, budgets) == entry
                )

    # Requests.

    def admit(self, request_id: str, want: Want, now_ms: int) -> tuple[Standing, list[Refusal]]:
        """Where all stands then, and how it may be refused: of limits equally bad, any may be named."""
        self.catch_up(now_ms)
        limits = self.limits
        budget_entry = entry_for(want.model, limits.model_budgets)
        if want.hold_nanos < 0 and (limits.budget is not None or budget_entry is not None):
            return self.standing(want.model, now_ms), [CallerRefused("model_not_priced")]
        if request_id in self.leases:
            return self.standing(want.model, now_ms), []
        want = self._shrunk(want)
        obstacles = [*self._windows_in_the_way(want, now_ms), *self._parallel_in_the_way()]
        obstacles += self._budgets_in_the_way(want, now_ms)
        if obstacles:
            worst, standing = max(each.weight for each in obstacles), self.standing(want.model, now_ms)
            named = [each for each in obstacles if each.weight == worst]
            return standing, [LimitRefused(standing, each.state, each.kind, each.wait_ms) for each in named]
        self._hold(request_id, want, now_ms)
        return self.standing(want.model, now_ms), []

    def settle(self, request_id: str, tokens: int, nanos: int, *, cancelled: bool = False) -> bool:
        late = request_id in self.expired
        held = self.expired.pop(request_id, None) or self.leases.pop(request_id, None)
        if held is None:
            return False
        self._charge(held, nanos=nanos - late * held.nanos, release=0 if late else held.nanos)
        for name in held.windows:
            if tokens != held.tokens:
                self.windows[name].correct(Event(held.second, 0, tokens - held.tokens))
            if cancelled:
                self.windows[name].correct(Event(held.second, -1, 0))
        return True

    def renew(self, request_id: str, now_ms: int) -> None:
        if request_id in self.leases:
            self.leases[request_id].expires_ms = now_ms + self.lease_ttl_ms

    def standing(self, model: str, now_ms: int) -> Standing:
        limits, second = self.limits, now_ms // 1_000
        user = self.windows[""].view(second)
        rpm_entry, tpm_entry = entry_for(model, limits.model_rpm), entry_for(model, limits.model_tpm)
        rpm_view, tpm_view = self._view(rpm_entry, second), self._view(tpm_entry, second)
        entry = entry_for(model, limits.model_budgets)
        account = self.accounts[entry] if entry is not None else Account()
        ends_ms = account.ends_ms or self.account.ends_ms if entry is not None else None
        return Standing(
            rpm_limit=_shown(limits.rpm),
            rpm_used=user.requests,
            window_reset_ms=(user.last_second + SPAN_S) * 1_000 - now_ms,
            tpm_limit=_shown(limits.tpm),
            tpm_used=user.tokens,
            model_rpm_limit=_shown(None if rpm_entry is None else limits.model_rpm[rpm_entry]),
            model_rpm_used=rpm_view.requests,
            model_tpm_limit=_shown(None if tpm_entry is None else limits.model_tpm[tpm_entry]),
            model_tpm_used=tpm_view.tokens,
            parallel_limit=_shown(limits.parallel),
            parallel_used=len(self.leases),
            budget_limit_nanos=_shown(limits.budget),
            budget_used_nanos=self.account.spent + self.account.held,
            budget_reset_ms=_until(self.account.ends_ms, now_ms),
            model_budget_limit_nanos=_shown(None if entry is None else limits.model_budgets[entry].limit),
            model_budget_used_nanos=account.spent + account.held,
            model_budget_reset_ms=_until(ends_ms, now_ms),
        )

    def _view(self, entry: str | None, second: int) -> View:
        return View(second, second, []) if entry is None else self._window(entry).view(second)

    def _window(self, name: str) -> Window:
        return self.windows.setdefault(name, Window())

    def _shrunk(self, want: Want) -> Want:
        """Never hold more than a limit itself, nor than spending has left of a budget, nor less than asked."""
        limits, hold_tokens, hold_nanos = self.limits, want.hold_tokens, max(0, want.hold_nanos)
        entry = entry_for(want.model, limits.model_tpm)
        for tpm in (limits.tpm, None if entry is None else limits.model_tpm[entry]):
            if tpm is not None and hold_tokens > tpm:
                hold_tokens = max(tpm, want.asked_tokens)
        for _, _, limit, account, _ in self._budgets(want.model):
            if hold_nanos > limit - account.spent:
                hold_nanos = max(limit - account.spent, want.asked_nanos)
        return want._replace(hold_tokens=hold_tokens, hold_nanos=hold_nanos, costs=want.hold_nanos > 0)

    def _windows_in_the_way(self, want: Want, now_ms: int) -> Iterable[Obstacle]:
        limits, second = self.limits, now_ms // 1_000
        user = self.windows[""].view(second)
        yield from _window_in_the_way("rpm", None, user, limits.rpm, Event(second, 1, 0), 1, now_ms)
        tokens = Event(second, 0, want.hold_tokens)
        yield from _window_in_the_way("tpm", None, user, limits.tpm, tokens, want.asked_tokens, now_ms)
        entry = entry_for(want.model, limits.model_rpm)
        if entry is not None:
            view, limit = self._view(entry, second), limits.model_rpm[entry]
            yield from _window_in_the_way("model_rpm", entry, view, limit, Event(second, 1, 0), 1, now_ms)
        entry = entry_for(want.model, limits.model_tpm)
        if entry is not None:
            view, limit = self._view(entry, second), limits.model_tpm[entry]
            yield from _window_in_the_way("model_tpm", entry, view, limit, tokens, want.asked_tokens, now_ms)

    def _parallel_in_the_way(self) -> Iterable[Obstacle]:
        limit, used = self.limits.parallel, len(self.leases)
        if limit is not None and used >= limit:
            yield _obstacle("parallel", None, limit, used, 1, *(("wait", 1_000) if limit else ("never", -1)))

    def _budgets(self, model: str) -> Iterable[tuple[LimitName, str | None, int, Account, int | None]]:
        if self.limits.budget is not None:
            yield "budget", None, self.limits.budget, self.account, self.account.ends_ms
        entry = entry_for(model, self.limits.model_budgets)
        if entry is not None:
            account = self.accounts[entry]
            ends_ms = account.ends_ms or self.account.ends_ms
            yield "model_budget", entry, self.limits.model_budgets[entry].limit, account, ends_ms

    def _budgets_in_the_way(self, want: Want, now_ms: int) -> Iterable[Obstacle]:
        for name, entry, limit, account, ends_ms in self._budgets(want.model):
            spent, held, hold = account.spent, account.held, max(0, want.hold_nanos)
            if 0 < limit < want.asked_nanos:
                yield _obstacle(name, entry, limit, spent + held, want.asked_nanos, "never", -1)
            elif spent + hold > limit or (want.costs and spent >= limit):
                yield _obstacle(name, entry, limit, spent, hold, "stop", _until(ends_ms, now_ms))
            elif spent + held + hold > limit:
                yield _obstacle(name, entry, limit, spent + held, hold, "wait", 2_000)

    def _hold(self, request_id: str, want: Want, now_ms: int) -> None:
        second = now_ms // 1_000
        entries = {entry_for(want.model, self.limits.model_rpm), entry_for(want.model, self.limits.model_tpm)}
        names = ("", *(entry for entry in entries if entry is not None))
        view = self.windows[""].view(second)
        for name in names:
            window = self._window(name)
            window.add(window.view(second), Event(view.second, 1, want.hold_tokens))
        entry = entry_for(want.model, self.limits.model_budgets)
        self.account.held += want.hold_nanos
        if entry is not None:
            self.accounts[entry].held += want.hold_nanos
        self.leases[request_id] = Reservation(
            second=view.second,
            tokens=want.hold_tokens,
            nanos=want.hold_nanos,
            model=want.model,
            expires_ms=now_ms + self.lease_ttl_ms,
            windows=names,
            period=self.account.period,
            entry=entry,
            entry_period=self.accounts[entry].period if entry is not None else 0,
        )

    def _charge(self, held: Reservation, *, nanos: int, release: int) -> None:
        """Money goes into the period it was held in; where that is over, it concerns no budget any more."""
        if held.period == self.account.period:
            self.account.spent += nanos
            self.account.held -= release
            if nanos or held.model in self.model_spend:
                self.model_spend[held.model] = self.model_spend.get(held.model, 0) + nanos
        if held.entry is not None and held.entry_period == self.accounts[held.entry].period:
            self.accounts[held.entry].spent += nanos
            self.accounts[held.entry].held -= release


def _window_in_the_way(
    name: LimitName, entry: str | None, view: View, limit: int | None, wanted: Event, least: int, now_ms: int
) -> Iterable[Obstacle]:
    used = view.requests if wanted.requests else view.tokens
    wants = max(wanted.requests, wanted.tokens)
    if limit is None or wants == 0:
        return
    if least > limit:
        yield _obstacle(name, entry, limit, used, least, "never", -1)
    elif used + wants > limit:
        yield _obstacle(name, entry, limit, used, wants, "wait", view.wait_ms(wanted, limit, now_ms))


def _obstacle(
    name: LimitName,
    entry: str | None,
    limit: int,
    used: int,
    asked: int,
    kind: Literal["wait", "stop", "never"],
    wait_ms: int,
) -> Obstacle:
    return Obstacle(LimitState(name, entry, limit, used, asked, wait_ms if wait_ms >= 0 else None), kind, wait_ms)


def _end(duration: str | None, anchor_ms: int, now_ms: int) -> int | None:
    return None if duration is None else durations.period_end_ms(durations.parse(duration), anchor_ms, now_ms)


def _shown(limit: int | None) -> int:
    return -1 if limit is None else limit


def _until(ends_ms: int | None, now_ms: int) -> int:
    return -1 if ends_ms is None else ends_ms - now_ms
