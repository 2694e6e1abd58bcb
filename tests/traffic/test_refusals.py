"""What a refused caller is told, row by row as the documentation's table has it."""

from __future__ import annotations

from typing import Literal

import pytest

from llmweir.decision import LimitName, LimitRefused, LimitState, Refusal, Standing
from llmweir.traffic.refusals import (
    STORE_UNAVAILABLE,
    caller_refused,
    limit_refused,
    refusal_headers,
    unauthenticated,
    upstream_unavailable,
)

STANDING = Standing(*[-1] * 17)
Kind = Literal["wait", "stop", "never"]


def refused(
    name: LimitName, kind: Kind, wait_ms: int, *, limit: int = 30_000, used: int = 28_039, asked: int = 3906,
    model: str = "gpt-4o", budget_status: int = 429,
) -> Refusal:  # fmt: skip
    state = LimitState(name, None, limit, used, asked)
    return limit_refused(LimitRefused(STANDING, state, kind, wait_ms), "alice", model, budget_status)


CALLERS = {
    "unknown_key": (401, "invalid_api_key"),
    "unknown_user": (401, "invalid_api_key"),
    "key_expired": (401, "invalid_api_key"),
    "user_blocked": (403, "user_blocked"),
    "key_blocked": (403, "key_blocked"),
    "role_not_allowed": (403, "role_not_allowed"),
    "model_not_allowed": (403, "model_not_allowed"),
    "cache_control_not_allowed": (403, "cache_control_not_allowed"),
    "model_not_priced": (400, "model_not_priced"),
}


@pytest.mark.parametrize(("reason", "expected"), CALLERS.items(), ids=CALLERS)
def test_a_caller_is_refused_with_the_status_and_code_of_the_table(reason: str, expected: tuple[int, str]) -> None:
    refusal = caller_refused(reason, "gpt-4o")
    assert (refusal.status, refusal.code) == expected
    assert refusal.type == "invalid_request_error"
    assert (refusal.retry_after_ms, refusal.should_retry, refusal.limit) == (None, None, None)
    is_about_the_model = reason.startswith("model")
    assert refusal.param == ("model" if is_about_the_model else None)
    assert ("gpt-4o" in refusal.message) == is_about_the_model


def test_a_caller_without_a_key_is_told_how_to_send_one() -> None:
    refusal = unauthenticated("no_key")
    assert (refusal.status, refusal.code) == (401, "invalid_api_key")
    assert "Authorization: Bearer" in refusal.message
    assert (b"www-authenticate", b"Bearer") in refusal_headers(refusal, "r")


Row = tuple[Refusal, int, str, str, int | None, bool | None]
LIMITS: dict[str, Row] = {
    "rpm": (refused("rpm", "wait", 3890), 429, "requests", "rate_limit_exceeded", 3890, None),
    "model rpm": (refused("model_rpm", "wait", 3890), 429, "requests", "rate_limit_exceeded", 3890, None),
    "tpm": (refused("tpm", "wait", 3890), 429, "tokens", "rate_limit_exceeded", 3890, None),
    "model tpm": (refused("model_tpm", "wait", 1), 429, "tokens", "rate_limit_exceeded", 1, None),
    "parallel": (refused("parallel", "wait", 1000), 429, "requests", "parallel_limit_exceeded", 1000, None),
    "holds in the way of a budget": (
        refused("budget", "wait", 2000), 429, "insufficient_quota", "budget_reserved", 2000, None),
    "holds in the way of a model's budget": (
        refused("model_budget", "wait", 2000), 429, "insufficient_quota", "budget_reserved", 2000, None),
    "budget spent": (
        refused("budget", "stop", -1), 429, "insufficient_quota", "insufficient_quota", None, False),
    "budget spent, a far reset": (
        refused("budget", "stop", 60_001), 429, "insufficient_quota", "insufficient_quota", None, False),
    "budget spent, a near reset": (
        refused("budget", "stop", 60_000), 429, "insufficient_quota", "insufficient_quota", 60_000, None),
    "model budget spent": (
        refused("model_budget", "stop", -1), 429, "insufficient_quota", "insufficient_quota", None, False),
    "budget spent, 402": (
        refused("budget", "stop", -1, budget_status=402), 402, "insufficient_quota", "insufficient_quota", None, False),
    "holds in the way, 402": (
        refused("budget", "wait", 2000, budget_status=402), 429, "insufficient_quota", "budget_reserved", 2000, None),
    "too many tokens": (refused("tpm", "never", -1), 429, "tokens", "request_too_large", None, False),
    "too many tokens for the model": (
        refused("model_tpm", "never", -1), 429, "tokens", "request_too_large", None, False),
    "too much money": (
        refused("budget", "never", -1, budget_status=402), 429, "tokens", "request_too_large", None, False),
    "no requests at all": (refused("rpm", "never", -1, limit=0), 429, "requests", "rate_limit_exceeded", None, False),
    "no slots at all": (
        refused("parallel", "never", -1, limit=0), 429, "requests", "parallel_limit_exceeded", None, False),
}  # fmt: skip


@pytest.mark.parametrize(
    ("refusal", "status", "kind", "code", "retry_after_ms", "should_retry"), LIMITS.values(), ids=LIMITS
)
def test_a_limit_refuses_as_the_table_says(
    refusal: Refusal, status: int, kind: str, code: str, retry_after_ms: int | None, should_retry: bool | None
) -> None:
    assert (refusal.status, refusal.type, refusal.code) == (status, kind, code)
    assert (refusal.retry_after_ms, refusal.should_retry) == (retry_after_ms, should_retry)
    assert refusal.limit is not None
    assert "user alice" in refusal.message


MESSAGES = {
    "the documentation's own": (
        refused("tpm", "wait", 3890),
        (
            "Rate limit reached for gpt-4o for user alice on tokens per min (TPM): limit 30000, used 28039, "
            "requested 3906. Please try again in 3.89s."
        ),
    ),
    "no model": (
        refused("rpm", "wait", 500, limit=1, used=1, asked=1, model=""),
        (
            "Rate limit reached for user alice on requests per min (RPM): limit 1, used 1, requested 1. "
            "Please try again in 500ms."
        ),
    ),
    "money": (
        refused("budget", "stop", -1, limit=1_500_000_000, used=1_500_000_001, asked=2),
        (
            "Budget exceeded for gpt-4o for user alice on budget (USD): limit 1.5, used 1.500000001, "
            "requested 0.000000002. It does not reset by itself."
        ),
    ),
    "money that comes back": (
        refused("budget", "stop", 90_000_000, limit=10**9, used=10**9, asked=0),
        (
            "Budget exceeded for gpt-4o for user alice on budget (USD): limit 1, used 1, requested 0. "
            "It resets in 25h0m0s."
        ),
    ),
    "too large": (
        refused("tpm", "never", -1, limit=10, used=0, asked=11),
        (
            "Request too large for gpt-4o for user alice on tokens per min (TPM): limit 10, used 0, requested 11. "
            "It can never fit, with any wait."
        ),
    ),
    "nothing allowed": (
        refused("rpm", "never", -1, limit=0, used=0, asked=1),
        (
            "Rate limit reached for gpt-4o for user alice on requests per min (RPM): limit 0, used 0, requested 1. "
            "It can never fit, with any wait."
        ),
    ),
}


@pytest.mark.parametrize(("refusal", "message"), MESSAGES.values(), ids=MESSAGES)
def test_the_message_says_whose_limit_which_used_asked_and_when(refusal: Refusal, message: str) -> None:
    assert refusal.message == message


WAITS = {
    "nothing to wait for": (None, None),
    "a millisecond": (1, (b"1", b"1")),
    "a second": (1000, (b"1", b"1000")),
    "rounded up": (1001, (b"2", b"1001")),
    "a minute": (60_000, (b"60", b"60000")),
    "bounded": (60_999, (b"60", b"60999")),
}


@pytest.mark.parametrize(("wait_ms", "expected"), WAITS.values(), ids=WAITS)
def test_retry_after_is_rounded_up_and_bounded_and_retry_after_ms_is_exact(
    wait_ms: int | None, expected: tuple[bytes, bytes] | None
) -> None:
    headers = dict(refusal_headers(Refusal(status=429, type="t", code="c", message="m", retry_after_ms=wait_ms), "r"))
    found = (headers.get(b"retry-after"), headers.get(b"retry-after-ms"))
    assert found == (expected or (None, None))


def test_every_refusal_is_not_to_be_stored_and_has_an_id() -> None:
    for refusal in (STORE_UNAVAILABLE, unauthenticated("no_key"), *(row[0] for row in LIMITS.values())):
        headers = dict(refusal_headers(refusal, "req_1"))
        assert headers[b"cache-control"] == b"no-store"
        assert headers[b"x-request-id"] == b"req_1"
        assert (headers.get(b"x-should-retry") == b"false") == (refusal.should_retry is False)
        assert (b"www-authenticate" in headers) == (refusal.status == 401)


def test_a_store_that_is_away_is_a_503_to_try_again_in_a_second() -> None:
    assert (STORE_UNAVAILABLE.status, STORE_UNAVAILABLE.type, STORE_UNAVAILABLE.code) == (
        503, "server_error", "store_unavailable",
    )  # fmt: skip
    assert dict(refusal_headers(STORE_UNAVAILABLE, "r"))[b"retry-after"] == b"1"


def test_an_upstream_that_does_not_answer_says_whether_it_was_late_or_away() -> None:
    away, late = upstream_unavailable(502), upstream_unavailable(504)
    assert (away.status, away.type, away.code) == (502, "server_error", "upstream_unavailable")
    assert (late.status, late.code) == (504, "upstream_unavailable")
    assert away.message != late.message
