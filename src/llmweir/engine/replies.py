"""Reads replies of Redis whose shape a script's header promises."""

from __future__ import annotations

from typing import Literal, cast

from llmweir.decision import CallerRefused, LimitName, LimitRefused, LimitState, Standing
from llmweir.engine.asks import AliasOf, SoftBudgetCrossed
from llmweir.engine.wire import Reply


def list_of(reply: Reply) -> list[Reply]:
    """A reply that is a list."""
    assert isinstance(reply, list)  # noqa: S101 (the script's header says so)
    return reply


def text_of(reply: Reply) -> str:
    """A reply that is text."""
    assert isinstance(reply, bytes)  # noqa: S101 (as above)
    return reply.decode()


def int_of(reply: Reply) -> int:
    """A reply that is a whole number, as one or as text."""
    assert isinstance(reply, int | bytes)  # noqa: S101 (as above)
    return int(reply)


def soft_budget_of(user_id: str, reply: Reply) -> SoftBudgetCrossed | None:
    """What a settlement's reply says of a soft budget: that it was crossed, or nothing."""
    if not isinstance(reply, list) or len(reply) != 3:
        return None
    _, spend_nanos, soft_budget_nanos = reply
    return SoftBudgetCrossed(user_id, int_of(spend_nanos), int_of(soft_budget_nanos))


def refused_of(reply: list[Reply]) -> CallerRefused | LimitRefused | AliasOf:
    """What an admission's reply says that lets nobody in."""
    if reply[0] == b"alias":
        return AliasOf(text_of(reply[1]))
    if reply[0] == b"caller":
        return CallerRefused(text_of(reply[1]))
    _, standing, name, account, kind, limit, used, asked, wait_ms = reply
    wait_ms = int_of(wait_ms)
    scope, _, entry = text_of(account).partition(":")
    state = LimitState(
        cast("LimitName", f"model_{text_of(name)}" if scope == "m" else text_of(name)),
        entry if scope == "m" else None,
        int_of(limit),
        int_of(used),
        int_of(asked),
        wait_ms if wait_ms >= 0 else None,
        of_key=scope == "k",
    )
    numbers = cast("list[int]", standing)
    return LimitRefused(Standing(*numbers), state, cast(Literal["wait", "stop", "never"], text_of(kind)), wait_ms)
