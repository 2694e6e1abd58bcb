"""What the gate asks of the store, and what it tells it afterwards: plain values."""

from __future__ import annotations

import msgspec


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What one request wants: the arguments of an admission.

    `key_hash` is "" where the app named the caller itself. `target` is the model the holds were made for: `model`, or
    what it was last seen to be an alias of. `asked_*` must fit under a limit itself, `hold_*` is what is reserved;
    nanos of -1 mean that the model has no price. `cache_controls` are lines. `default_digest` names the default
    user's limits.
    """

    request_id: str
    user_id: str
    key_hash: str
    model: str = ""
    target: str = ""
    asked_tokens: int = 0
    hold_tokens: int = 0
    asked_nanos: int = 0
    hold_nanos: int = 0
    cache_controls: str = ""
    default_digest: str = ""


class AliasOf(msgspec.Struct, frozen=True):
    """The model asked for is an alias of `model`: the holds must be made for that one."""

    model: str


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an admitted request really used; `cancelled` undoes the admission as if it had never been."""

    request_id: str
    user_id: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanos: int = 0
    failed: bool = False
    cancelled: bool = False


class KeptSettlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A settlement that Redis has not answered for, as the outbox keeps it: all that it takes to settle it on its own.

    `at_ms` is when the request was admitted, in ms since 1970 UTC by the worker's clock, 0 = not known. `may_be_done`:
    it was sent, and Redis may have carried it out; where no lease is left of it, it is not charged anew.
    """

    request_id: str
    user_id: str
    key_hash: str = ""
    model: str = ""
    at_ms: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanos: int = 0
    failed: bool = False
    cancelled: bool = False
    may_be_done: bool = False


class SoftBudgetCrossed(msgspec.Struct, frozen=True):
    """A settlement took a user's spend over the soft budget, for the first time in the period."""

    user_id: str
    spend_nanos: int
    soft_budget_nanos: int
