"""The shape of a user's live usage: each limit with what is used of it, and the one that will bind first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from llmweir import money
from llmweir.decision import LimitName
from llmweir.engine.limit_usage import LimitUsage

_IN_USD = frozenset({"budget", "soft_budget", "model_budget"})


class LimitRow(TypedDict):
    """One limit that is set, in requests, tokens, slots or USD.

    `model` names the entry of a per-model limit, and `key` (the SHA-256 in hex) the key whose own limit it is.
    `reset_ms` is null where time alone gives nothing back.
    """

    name: LimitName
    model: str | None
    limit: float
    used: float
    reserved: float
    remaining: float
    reset_ms: int | None
    key: NotRequired[str]


class Usage(TypedDict):
    """The limits of a user, and the one of them that is nearest to its end."""

    user_id: str
    limits: list[LimitRow]
    binding: LimitRow | None


def usage_json(user_id: str, usages: Sequence[LimitUsage], presented: str | None) -> Usage:
    """A user's live usage; `presented` is the token of the key that asks, where it is the user's."""
    binding = binding_of(usages, presented)
    return {
        "user_id": user_id,
        "limits": [_limit_json(usage) for usage in usages],
        "binding": _limit_json(binding) if binding is not None else None,
    }


def binding_of(usages: Sequence[LimitUsage], presented: str | None) -> LimitUsage | None:
    """The limit with the smallest part left of it, the first of several; None where none is set.

    A soft budget binds nobody, and the own limits of a key bind only who presents it.
    """
    binds = [usage for usage in usages if usage.name != "soft_budget" and usage.key in (None, presented)]
    return min(binds, key=_part_left, default=None)


def _part_left(usage: LimitUsage) -> float:
    return usage.remaining / usage.limit if usage.limit else 0.0


def _limit_json(usage: LimitUsage) -> LimitRow:
    row: LimitRow = {
        "name": usage.name,
        "model": usage.model,
        "limit": _shown(usage, usage.limit),
        "used": _shown(usage, usage.used),
        "reserved": _shown(usage, usage.reserved),
        "remaining": _shown(usage, usage.remaining),
        "reset_ms": usage.reset_ms,
    }
    return row if usage.key is None else {**row, "key": usage.key}


def _shown(usage: LimitUsage, amount: int) -> int | float:
    return money.nanos_to_usd(amount) if usage.name in _IN_USD else amount
