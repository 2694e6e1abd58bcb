"""The rules of admission in plain Python: what the scripts are tested against.

A window is a list of what happened, a budget a sum; whatever can be counted anew is counted anew. Written from the
contract, not from the scripts: nothing here is fast, and nothing is kept that follows from something else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

from tests.engine.model_parts import (
    SPAN_S,
    Event,
    Key,
    Limits,
    ModelBudget,
    Part,
    Reservation,
    Row,
    Scope,
    Want,
    end_of_period,
)

from llmweir.decision import CallerRefused, LimitName, LimitRefused, LimitState, Standing
from llmweir.engine.replays import TOMBSTONE_LIFE_MS

Kind = Literal["wait", "stop", "never"]
Refusal = LimitRefused | CallerRefused


@dataclass
class Obstacle:
    """A limit that is in the way."""

    state: LimitState
    kind: Kind
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
    """One user, who may be deleted and made again; the books outlive that."""

    def __init__(self, *, lease_ttl_ms: int) -> None:
        self.lease_ttl_ms = lease_ttl_ms
        self.expired: dict[str, Reservation] = {}
        self.books: dict[tuple[int, str], list[int]] = {}
        self.replayed: set[str] = set()
        self.make_anew(0)

    def make_anew(self, now_ms: int) -> None:
        self.exists = True
        self.made_ms = self.seen_ms = now_ms
        self.buried: dict[str, int] = {}
        self.limits = Limits()
        self.user = Scope()
        self.adjustment = 0
        self.model_spend: dict[str, int] = {}
        self.entries: dict[str, Scope] = {}
        self.keys: dict[str, Key] = {}
        self.leases: dict[str, Reservation] = {}

    # The lazy part: what the passing of time alone has done.

    def bury(self, request_id: str, now_ms: int) -> None:
        """An admission of this request may come yet, and is to count nothing."""
        self.buried.setdefault(request_id, now_ms + TOMBSTONE_LIFE_MS)

    def catch_up(self, now_ms: int) -> None:
        self.seen_ms = now_ms
        self.buried = {each: expires_ms for each, expires_ms in self.buried.items() if expires_ms > now_ms}
        for request_id in [each for each, held in self.leases.items() if held.expires_ms <= now_ms]:
            self._expire(request_id)
        account = self.user.account
        if account.is_over(now_ms):
            account.restart(end_of_period(self.limits.duration, self.limits.anchor_ms, now_ms))
            self.adjustment = 0
            self.model_spend.clear()
            for scope in self.entries.values():
                if scope.account.ends_ms is None:
                    scope.account.restart(None)
        for name, scope in self.entries.items():
            if scope.account.is_over(now_ms):
                budget = self.limits.model_budgets.get(name, ModelBudget(0))
                scope.account.restart(end_of_period(budget.duration, budget.anchor_ms, now_ms))
        for key in self.keys.values():
            if key.scope is not None and key.scope.account.is_over(now_ms):
                key.scope.account.restart(end_of_period(key.limits.duration, key.limits.anchor_ms, now_ms))

    def _expire(self, request_id: str) -> None:
        held = self.expired[request_id] = self.leases.pop(request_id)
        self._charge(held, nanos=held.nanos, release=held.nanos)
        self._book(held, requests=1, input_tokens=held.tokens, nanos=held.nanos)

    # Changes of the record.

    def set_period(self, duration: str | None, now_ms: int) -> None:
        """A period starts now; the duration that holds already keeps the one that runs."""
        if duration == self.limits.duration:
            return
        self.limits.duration, self.limits.anchor_ms = duration, now_ms
        self.user.account.ends_ms = end_of_period(duration, now_ms, now_ms)

    def set_spend(self, nanos: int) -> None:
        self.adjustment += nanos - self.user.account.spent
        self.user.account.spent = nanos

    def set_model_budgets(self, budgets: dict[str, tuple[int, str | None]], now_ms: int) -> None:
        had, self.limits.model_budgets = self.limits.model_budgets, {}
        for entry, (limit, duration) in budgets.items():
            before = had.get(entry)
            account = self._entry(entry).account
            budget = self.limits.model_budgets[entry] = ModelBudget(limit, duration, now_ms)
            if duration is not None and before is not None and before.duration == duration:
                budget.anchor_ms = before.anchor_ms
            else:
                account.ends_ms = end_of_period(duration, now_ms, now_ms)
            if before is None:
                account.spent = sum(
                    spent for model, spent in self.model_spend.items() if entry_for(model, budgets) == entry
                )

    def delete(self, now_ms: int) -> None:
        """What is in flight is charged as held; what comes later concerns the books alone."""
        self.catch_up(now_ms)
        for request_id in [*self.leases]:
            self._expire(request_id)
        self.make_anew(now_ms)
        self.exists = False

    # Requests.

    def admit(self, request_id: str, want: Want, now_ms: int) -> tuple[Standing, list[Refusal]]:
        """Where all stands then, and how it may be refused: of limits equally bad, any may be named."""
        self.catch_up(now_ms)
        rows, key = self.rows(want), self.keys.get(want.key)
        reason = self._caller_in_the_way(want, key)
        if reason is None and want.hold_nanos < 0 and any(row.budget is not None for row in rows):
            reason = "model_not_priced"
        if reason is not None:
            return self._standing(rows, now_ms), [CallerRefused(reason)]
        if request_id in self.leases or request_id in self.buried:
            return self._standing(rows, now_ms), []
        want = _shrunk(want, rows)
        obstacles = [obstacle for row in rows for obstacle in self._in_the_way(row, want, now_ms)]
        if obstacles:
            worst, standing = max(each.weight for each in obstacles), self._standing(rows, now_ms)
            named = [each for each in obstacles if each.weight == worst]
            return standing, [LimitRefused(standing, each.state, each.kind, each.wait_ms) for each in named]
        self._hold(request_id, want, rows, key, now_ms)
        return self._standing(rows, now_ms), []

    def settle(
        self, request_id: str, input_tokens: int, output_tokens: int, nanos: int, *, failed: bool, cancelled: bool
    ) -> bool:
        late, tokens = request_id in self.expired, input_tokens + output_tokens
        held = self.expired.pop(request_id, None) or self.leases.pop(request_id, None)
        if held is None:
            if cancelled and request_id not in self.replayed:
                self.bury(request_id, self.seen_ms)
            return False
        self._charge(held, nanos=nanos - late * held.nanos, release=0 if late else held.nanos)
        if late:
            counts = {"requests": -cancelled, "input_tokens": input_tokens - held.tokens, "nanos": nanos - held.nanos}
            self._book(held, **counts, failed=failed, output_tokens=output_tokens)
        elif not cancelled:
            self._book(held, 1, failed, input_tokens, output_tokens, nanos)
        for part in held.parts:
            if part.in_window and tokens != held.tokens:
                part.scope.window.correct(Event(held.second, 0, tokens - held.tokens))
            if part.in_window and cancelled:
                part.scope.window.correct(Event(held.second, -1, 0))
        return True

    def renew(self, request_id: str, now_ms: int) -> None:
        if request_id in self.leases:
            self.leases[request_id].expires_ms = now_ms + self.lease_ttl_ms

    def rows(self, want: Want) -> list[Row]:
        """The user's own limits, the key's, and those of the model: each limit of a model in a row of its own."""
        limits, ends_ms = self.limits, self.user.account.ends_ms
        own = (limits.rpm, limits.tpm, limits.parallel, limits.budget)
        rows = [Row(self.user, None, False, *own, ends_ms)]
        key = self.keys.get(want.key)
        if key is not None and key.scope is not None:
            of_key = (key.limits.rpm, key.limits.tpm, key.limits.parallel, key.limits.budget)
            rows.append(Row(key.scope, None, True, *of_key, key.scope.account.ends_ms))
        entry = entry_for(want.model, limits.model_rpm)
        if entry is not None:
            rows.append(Row(self._entry(entry), entry, rpm=limits.model_rpm[entry]))
        entry = entry_for(want.model, limits.model_tpm)
        if entry is not None:
            rows.append(Row(self._entry(entry), entry, tpm=limits.model_tpm[entry]))
        entry = entry_for(want.model, limits.model_budgets)
        if entry is not None:
            scope = self._entry(entry)
            budget = limits.model_budgets[entry].limit
            rows.append(Row(scope, entry, budget=budget, ends_ms=scope.account.ends_ms or ends_ms))
        return rows

    def _entry(self, name: str) -> Scope:
        return self.entries.setdefault(name, Scope())

    def _running(self, scope: Scope) -> int:
        return sum(any(part.scope is scope for part in held.parts) for held in self.leases.values())

    def _caller_in_the_way(self, want: Want, key: Key | None) -> str | None:
        if not self.exists:
            return "unknown_user"
        if want.key and key is None:
            return "unknown_key"
        return "key_blocked" if key is not None and key.blocked else None

    def _in_the_way(self, row: Row, want: Want, now_ms: int) -> Iterable[Obstacle]:
        second = now_ms // 1_000
        if row.rpm is not None:
            yield from _window_in_the_way("rpm", row, row.rpm, Event(second, 1, 0), 1, now_ms)
        if row.tpm is not None:
            wanted = Event(second, 0, want.hold_tokens)
            yield from _window_in_the_way("tpm", row, row.tpm, wanted, want.asked_tokens, now_ms)
        if row.parallel is not None and self._running(row.scope) >= row.parallel:
            used, may_wait = self._running(row.scope), row.parallel > 0
            how: tuple[Kind, int] = ("wait", 1_000) if may_wait else ("never", -1)
            yield _obstacle("parallel", row, row.parallel, used, 1, *how)
        if row.budget is not None:
            yield from _budget_in_the_way(row, row.budget, want, now_ms)

    def _standing(self, rows: list[Row], now_ms: int) -> Standing:
        """Where a key's own limit has less room left than the user's, it stands in its place."""
        user, second = rows[0], now_ms // 1_000
        window = self.user.window.view(second)
        numbers = {
            "window_reset_ms": (window.last_second + SPAN_S) * 1_000 - now_ms,
            "budget_reset_ms": _until(user.ends_ms, now_ms),
            "model_budget_reset_ms": -1,
        }
        limits: dict[str, tuple[int, int]] = {}
        for row in rows:
            budget = "budget" if row.entry is None else "model_budget"
            for name, limit, used in self._uses(row, second):
                full = name if row.entry is None else f"model_{name}"
                other = limits.get(full)
                if row is user:
                    limits[full] = _shown(limit), used
                elif limit is not None and (other is None or other[0] < 0 or limit - used < other[0] - other[1]):
                    limits[full] = limit, used
                    if full == budget:
                        numbers[f"{budget}_reset_ms"] = _until(row.ends_ms, now_ms)
        for name in ("rpm", "tpm", "model_rpm", "model_tpm", "parallel", "budget", "model_budget"):
            unit = "_nanos" if name.endswith("budget") else ""
            numbers[f"{name}_limit{unit}"], numbers[f"{name}_used{unit}"] = limits.get(name, (-1, 0))
        return Standing(**numbers)

    def _uses(self, row: Row, second: int) -> list[tuple[str, int | None, int]]:
        view, account = row.scope.window.view(second), row.scope.account
        return [
            ("rpm", row.rpm, view.requests),
            ("tpm", row.tpm, view.tokens),
            ("parallel", row.parallel, self._running(row.scope)),
            ("budget", row.budget, account.spent + account.held),
        ]

    def _hold(self, request_id: str, want: Want, rows: list[Row], key: Key | None, now_ms: int) -> None:
        second = now_ms // 1_000
        counted_at, parts = self.user.window.view(second).second, list[Part]()
        for scope in dict.fromkeys(row.scope for row in rows):
            of_scope = [row for row in rows if row.scope is scope]
            whole = of_scope[0].entry is None
            in_window = whole or any(row.rpm is not None or row.tpm is not None for row in of_scope)
            in_budget = whole or any(row.budget is not None for row in of_scope)
            if in_window:
                scope.window.add(scope.window.view(second), Event(counted_at, 1, want.hold_tokens))
            if in_budget:
                scope.account.held += want.hold_nanos
            parts.append(Part(scope, in_window, scope.account.period if in_budget else None))
        self.leases[request_id] = Reservation(
            second=counted_at,
            tokens=want.hold_tokens,
            nanos=want.hold_nanos,
            model=want.model,
            expires_ms=now_ms + self.lease_ttl_ms,
            parts=parts,
            unscoped_key=key if key is not None and key.scope is None else None,
        )

    def _charge(self, held: Reservation, *, nanos: int, release: int) -> None:
        """Money goes into the period it was held in; where that is over, it concerns no budget any more.

        A key that had no account when its request came may have got one with a period since: what is given back may
        have been spent before that period, so it is given nothing back.
        """
        for part in held.parts:
            if part.period == part.scope.account.period:
                part.scope.account.spent += nanos
                part.scope.account.held -= release
                if part.scope is self.user and (nanos or held.model in self.model_spend):
                    self.model_spend[held.model] = self.model_spend.get(held.model, 0) + nanos
        key = held.unscoped_key
        if key is not None and not (nanos < 0 and key.ends_ms is not None):
            key.add(nanos)

    def _book(
        self,
        held: Reservation,
        requests: int,
        failed: bool = False,
        input_tokens: int = 0,
        output_tokens: int = 0,
        nanos: int = 0,
    ) -> None:
        """Write what was charged into the row of the day that the request came on."""
        row = self.books.setdefault((held.second // 86_400, held.model), [0] * 5)
        for index, count in enumerate((requests, int(failed), input_tokens, output_tokens, nanos)):
            row[index] += count


def _shrunk(want: Want, rows: list[Row]) -> Want:
    """Never hold more than a limit itself, nor than spending has left of a budget, nor less than asked."""
    hold_tokens, hold_nanos = want.hold_tokens, max(0, want.hold_nanos)
    for row in rows:
        if row.tpm is not None and hold_tokens > row.tpm:
            hold_tokens = max(row.tpm, want.asked_tokens)
        if row.budget is not None and hold_nanos > row.budget - row.scope.account.spent:
            hold_nanos = max(row.budget - row.scope.account.spent, want.asked_nanos)
    return want._replace(hold_tokens=hold_tokens, hold_nanos=hold_nanos, costs=want.hold_nanos > 0)


def _window_in_the_way(name: str, row: Row, limit: int, wanted: Event, least: int, now_ms: int) -> Iterable[Obstacle]:
    view = row.scope.window.view(wanted.second)
    used = view.requests if wanted.requests else view.tokens
    wants = max(wanted.requests, wanted.tokens)
    if wants == 0:
        return
    if least > limit:
        yield _obstacle(name, row, limit, used, least, "never", -1)
    elif used + wants > limit:
        yield _obstacle(name, row, limit, used, wants, "wait", view.wait_ms(wanted, limit, now_ms))


def _budget_in_the_way(row: Row, limit: int, want: Want, now_ms: int) -> Iterable[Obstacle]:
    spent, held, hold = row.scope.account.spent, row.scope.account.held, max(0, want.hold_nanos)
    if 0 < limit < want.asked_nanos:
        yield _obstacle("budget", row, limit, spent + held, want.asked_nanos, "never", -1)
    elif spent + hold > limit or (want.costs and spent >= limit):
        yield _obstacle("budget", row, limit, spent, hold, "stop", _until(row.ends_ms, now_ms))
    elif spent + held + hold > limit:
        yield _obstacle("budget", row, limit, spent + held, hold, "wait", 2_000)


def _obstacle(name: str, row: Row, limit: int, used: int, asked: int, kind: Kind, wait_ms: int) -> Obstacle:
    full = cast(LimitName, name if row.entry is None else f"model_{name}")
    reset_ms = wait_ms if wait_ms >= 0 else None
    return Obstacle(LimitState(full, row.entry, limit, used, asked, reset_ms, row.of_key), kind, wait_ms)


def _shown(limit: int | None) -> int:
    return -1 if limit is None else limit


def _until(ends_ms: int | None, now_ms: int) -> int:
    return -1 if ends_ms is None else ends_ms - now_ms
