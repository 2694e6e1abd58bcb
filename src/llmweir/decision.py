"""What the gate decided on one request: headers, bodies, logs, metrics and tests all come from these values.

What is made for every request is left out of the garbage collector's rounds (`gc=False`): it can hold no cycle.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import msgspec

LimitName = Literal["rpm", "tpm", "parallel", "budget", "soft_budget", "model_rpm", "model_tpm", "model_budget"]
"""Names of the limits of a record, as `GET /user/usage` spells them."""

Dialect = Literal["openai", "anthropic", "gemini"]
"""Whose error shape a caller understands; follows from the path."""


class LimitState(msgspec.Struct, frozen=True):
    """Where one limit stood when a request was decided.

    Requests, tokens or slots, or nano-dollars for the budgets. `model` is the entry of the per-model limit: a name or
    a prefix with `*`. `used` includes what is held for requests in flight; `asked` is what this request wanted on top
    of it. `reset_ms` is the time until the limit is back at its initial state (a window empty, a period over); None
    where that never happens by itself.
    """

    name: LimitName
    model: str | None
    limit: int
    used: int
    asked: int = 0
    reset_ms: int | None = None
    of_key: bool = False

    @property
    def remaining(self) -> int:
        """What is left under the limit, never below zero."""
        return max(0, self.limit - self.used)


NO_LIMIT = -1
"""Stands for a limit that is not set, and for a reset that never comes by itself."""


class Standing(msgspec.Struct, frozen=True, gc=False):
    """Where all limits of a caller stand at the moment a request was decided, its own part included if it was admitted.

    Requests, tokens, slots; budgets in nano-dollars; `used` counts what is held for requests in flight. A limit of
    NO_LIMIT is not set. `*_reset_ms` is the time until the limit is back at its initial state: a window empty, a
    period over (NO_LIMIT: never). Where the caller's API key has limits of its own, each that has less room left stands
    in the place of the user's.
    """

    rpm_limit: int
    rpm_used: int
    window_reset_ms: int
    tpm_limit: int
    tpm_used: int
    model_rpm_limit: int
    model_rpm_used: int
    model_tpm_limit: int
    model_tpm_used: int
    parallel_limit: int
    parallel_used: int
    budget_limit_nanos: int
    budget_used_nanos: int
    budget_reset_ms: int
    model_budget_limit_nanos: int
    model_budget_used_nanos: int
    model_budget_reset_ms: int


class Caller(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who is calling, as the app behind finds it in `scope["state"]["llmweir"]`."""

    user_id: str
    user_alias: str | None = None
    user_role: str = "internal_user"
    teams: tuple[str, ...] = ()
    metadata: dict[str, object] = {}
    guardrails: tuple[str, ...] = ()
    permissions: dict[str, object] = {}
    key_alias: str | None = None
    request_id: str = ""


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """The request may pass; its reservation is held until it is settled.

    `is_tight`: one more request like this one might not fit for as long as this one is not settled. Other requests of
    the caller may follow while it runs, so half of the parallel slots taken is tight already.
    """

    standing: Standing
    profile: Caller
    is_tight: bool = False


class LetThrough(msgspec.Struct, frozen=True, gc=False):
    """The request may pass while the store is away, though nobody knows where the limits stand.

    It settles as `request_id` once the store is back; its own id is that of an admission that was taken back.
    """

    standing: ClassVar[None] = None
    is_tight: ClassVar[bool] = False
    profile: Caller
    request_id: str


class CallerRefused(msgspec.Struct, frozen=True):
    """The caller may not come in, or not with this; `reason` is the script's word for it."""

    reason: str


class LimitRefused(msgspec.Struct, frozen=True):
    """A limit is in the way, the one that takes longest to clear if there are several.

    `kind`: "wait" (there is room in `wait_ms`), "stop" (spent: no room before the period ends, in `wait_ms`, or ever:
    NO_LIMIT) or "never" (more was asked than the limit itself).
    """

    standing: Standing
    limit: LimitState
    kind: Literal["wait", "stop", "never"]
    wait_ms: int


Decision: TypeAlias = Admitted | CallerRefused | LimitRefused
"""What the store answers to an admission."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request is not let through, in OpenAI's terms; the other dialects are made from it.

    `retry_after_ms` is None where no waiting helps or nothing is known of it. `should_retry` False asks SDKs to give
    up (`x-should-retry: false`), None says nothing. `limited` is the limit in the way, where it is one.
    """

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry_after_ms: int | None = None
    should_retry: bool | None = None
    limit: LimitState | None = None
