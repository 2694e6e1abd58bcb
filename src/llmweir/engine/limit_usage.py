"""Where each limit of a user stands at rest: what is set in the record, beside what the accounts have counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from llmweir.decision import LimitName
from llmweir.engine.user_data import AccountState
from llmweir.key_records import KeyRecord
from llmweir.records import UserRecord

_NOTHING = AccountState()


class LimitUsage(msgspec.Struct, frozen=True):
    """One limit that is set: requests, tokens, slots, or nano-dollars for the budgets.

    `model` is the entry of a per-model limit, `key` the token of the API key whose own limit it is. `reserved` is held
    for requests in flight, on top of `used`; only budgets tell the two apart. `reset_ms` is the time until the limit is
    back at its initial state, None where that never comes by itself.
    """

    name: LimitName
    limit: int
    used: int
    reserved: int = 0
    reset_ms: int | None = None
    model: str | None = None
    key: str | None = None

    @property
    def remaining(self) -> int:
        """What is left, never below zero."""
        return max(0, self.limit - self.used - self.reserved)


def usage_of(
    record: UserRecord, keys: Sequence[tuple[str, KeyRecord]], accounts: Mapping[str, AccountState], now_ms: int
) -> list[LimitUsage]:
    """Lists every limit that is set: the user's own, those of models, those of API keys (account's name and row)."""
    own = accounts.get("u", _NOTHING)
    found = [
        *_scope(record.rpm_limit, record.tpm_limit, record.max_parallel_requests, record.max_budget_nanos, own, now_ms),
        *_soft(record, own, now_ms),
        *_models(record, accounts, own, now_ms),
    ]
    for name, key in keys:
        account = accounts.get(name, _NOTHING)
        limits = (key.rpm_limit, key.tpm_limit, key.max_parallel_requests, key.max_budget_nanos)
        found += [msgspec.structs.replace(each, key=key.token) for each in _scope(*limits, account, now_ms)]
    return found


def _scope(
    rpm: int | None, tpm: int | None, parallel: int | None, budget: int | None, account: AccountState, now_ms: int
) -> Iterator[LimitUsage]:
    if rpm is not None:
        yield LimitUsage("rpm", rpm, account.requests, reset_ms=_window_reset_ms(account))
    if tpm is not None:
        yield LimitUsage("tpm", tpm, account.tokens, reset_ms=_window_reset_ms(account))
    if parallel is not None:
        yield LimitUsage("parallel", parallel, account.running)
    if budget is not None:
        yield LimitUsage("budget", budget, account.spent_nanos, account.held_nanos, _until(account.ends_at_ms, now_ms))


def _soft(record: UserRecord, account: AccountState, now_ms: int) -> Iterator[LimitUsage]:
    if record.soft_budget_nanos is not None:
        reset_ms = _until(account.ends_at_ms, now_ms)
        yield LimitUsage("soft_budget", record.soft_budget_nanos, account.spent_nanos, account.held_nanos, reset_ms)


def _models(
    record: UserRecord, accounts: Mapping[str, AccountState], own: AccountState, now_ms: int
) -> Iterator[LimitUsage]:
    for model, limit in record.model_rpm_limit.items():
        account = accounts.get(f"m:{model}", _NOTHING)
        yield LimitUsage("model_rpm", limit, account.requests, reset_ms=_window_reset_ms(account), model=model)
    for model, limit in record.model_tpm_limit.items():
        account = accounts.get(f"m:{model}", _NOTHING)
        yield LimitUsage("model_tpm", limit, account.tokens, reset_ms=_window_reset_ms(account), model=model)
    for model, budget in record.model_budgets.items():
        account = accounts.get(f"m:{model}", _NOTHING)
        reset_ms = _until(account.ends_at_ms or own.ends_at_ms, now_ms)
        used = (account.spent_nanos, account.held_nanos, reset_ms)
        yield LimitUsage("model_budget", budget.limit_nanos, *used, model=model)


def _window_reset_ms(account: AccountState) -> int:
    return account.window_reset_ms if account.requests or account.tokens else 0


def _until(at_ms: int | None, now_ms: int) -> int | None:
    return None if at_ms is None else max(0, at_ms - now_ms)
