"""The rules of what comes from the outbox: a settlement that brings its own time, and counts once whenever it comes."""

from __future__ import annotations

from dataclasses import dataclass

from tests.engine.model import Rules
from tests.engine.model_parts import SPAN_S, Event, Key, OwnLimits, Row, Scope, Want, end_of_period


@dataclass
class LetThrough:
    """A request that was let through while Redis was away; `key` is its API key, which may be made anew or deleted."""

    request_id: str
    want: Want
    at_ms: int
    key_hash: str = ""
    key: Key | None = None

    def settle_as(self, rules: Rules) -> None:
        """Names the key as it is known now: "" where it is gone."""
        names = [name for name, key in rules.keys.items() if key is self.key]
        self.want = self.want._replace(key=names[0] if names else "")


def replay(rules: Rules, request_id: str, used: tuple[int, int, int], **how: bool) -> bool:
    """Settle a request that was admitted once; whether that is still to be done."""
    if request_id in rules.replayed:
        return False
    rules.replayed.add(request_id)
    failed, cancelled = how.get("failed", False), how.get("cancelled", False)
    if rules.settle(request_id, *used, failed=failed, cancelled=cancelled):
        return True
    if cancelled:
        rules.bury(request_id, rules.seen_ms)
    return False


def count_anew(rules: Rules, asked: LetThrough, used: tuple[int, int, int], failed: bool, now_ms: int) -> bool:
    """Count a request that never had a lease, where it belongs by its own time."""
    if asked.request_id in rules.replayed:
        return False
    rules.replayed.add(asked.request_id)
    rules.bury(asked.request_id, now_ms)
    input_tokens, output_tokens, nanos = used
    second = asked.at_ms // 1_000
    row = rules.books.setdefault((second // 86_400, asked.want.model), [0] * 5)
    for index, count in enumerate((1, int(failed), *used)):
        row[index] += count
    if not rules.exists or rules.made_ms // 1_000 > second:
        return True
    rows, key = rules.rows(asked.want), rules.keys.get(asked.want.key)
    for scope in dict.fromkeys(row.scope for row in rows):
        _count(
            rules,
            scope,
            [row for row in rows if row.scope is scope],
            asked,
            (input_tokens + output_tokens, nanos),
            now_ms,
        )
    if _runs(rules.limits, asked.at_ms, now_ms):
        rules.model_spend[asked.want.model] = rules.model_spend.get(asked.want.model, 0) + nanos
    if key is not None and key.scope is None:
        key.add(nanos)
    return True


def _count(rules: Rules, scope: Scope, rows: list[Row], asked: LetThrough, used: tuple[int, int], now_ms: int) -> None:
    tokens, nanos = used
    whole, view = rows[0].entry is None, scope.window.view(now_ms // 1_000)
    scope.window.events, scope.window.last = view.events, view.second  # it is looked at now, whatever counts in it
    if whole or any(row.rpm is not None or row.tpm is not None for row in rows):
        at_second = min(asked.at_ms // 1_000, view.second)
        if at_second > view.second - SPAN_S:
            scope.window.add(view, Event(at_second, 1, tokens))
    if (whole or any(row.budget is not None for row in rows)) and _period_runs(rules, scope, rows, asked.at_ms, now_ms):
        scope.account.spent += nanos


def _period_runs(rules: Rules, scope: Scope, rows: list[Row], at_ms: int, now_ms: int) -> bool:
    if rows[0].of_key:
        return _runs(next(key.limits for key in rules.keys.values() if key.scope is scope), at_ms, now_ms)
    budget = rules.limits.model_budgets.get(rows[-1].entry or "")
    if budget is not None and budget.duration is not None:
        return _runs(OwnLimits(duration=budget.duration, anchor_ms=budget.anchor_ms), at_ms, now_ms)
    return _runs(rules.limits, at_ms, now_ms)


def _runs(limits: OwnLimits, at_ms: int, now_ms: int) -> bool:
    """Whether no period has ended since; one that was set anew goes on with what was spent before."""
    ends_ms = end_of_period(limits.duration, limits.anchor_ms, max(at_ms, limits.anchor_ms))
    return ends_ms is None or ends_ms > now_ms
