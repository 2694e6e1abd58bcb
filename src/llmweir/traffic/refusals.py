"""What a refused caller is told: status, type, code and a message that says whose limit, which, and until when."""

from __future__ import annotations

from typing import Final

from llmweir.decision import LimitRefused, LimitState, Refusal
from llmweir.money import format_usd
from llmweir.traffic.asgi import Headers
from llmweir.traffic.headers import openai_duration

UPSTREAM_UNAVAILABLE: Final = "upstream_unavailable"
_LONGEST_RETRY_AFTER_S = 60
_SOON_MS = 60_000

_UNAUTHENTICATED = {
    "no_key": "No API key was given. Send it as 'Authorization: Bearer sk-...' or in the header x-api-key.",
    "unknown_key": "This API key is not valid.",
    "unknown_user": "This caller is not known.",
    "key_expired": "This API key has expired.",
}
_FORBIDDEN = {
    "user_blocked": "This user is blocked.",
    "key_blocked": "This API key is blocked.",
    "role_not_allowed": "The role of this user may not send requests to models.",
    "cache_control_not_allowed": "This user may not send one of the cache controls of this request.",
}
_LIMIT_NAMES = {
    "rpm": "requests per min (RPM)",
    "model_rpm": "requests per min (RPM) for this model",
    "tpm": "tokens per min (TPM)",
    "model_tpm": "tokens per min (TPM) for this model",
    "parallel": "parallel requests",
    "budget": "budget (USD)",
    "model_budget": "budget (USD) for this model",
}


def unauthenticated(reason: str) -> Refusal:
    """Nobody is known by this key, or there is none."""
    return Refusal(status=401, type="invalid_request_error", code="invalid_api_key", message=_UNAUTHENTICATED[reason])


def caller_refused(reason: str, model: str) -> Refusal:
    """The caller may not come in, or not with this model."""
    if reason in _UNAUTHENTICATED:
        return unauthenticated(reason)
    if reason == "model_not_priced":
        message = (
            f"The model {model} has no price, and this user has a budget: it cannot be metered. "
            "An admin can give it one in the price_file, or set unpriced_models to free."
        )
        return Refusal(status=400, type="invalid_request_error", code=reason, message=message, param="model")
    if reason == "model_not_allowed":
        message = f"This user or API key may not use the model {model}."
        return Refusal(status=403, type="invalid_request_error", code=reason, message=message, param="model")
    return Refusal(status=403, type="invalid_request_error", code=reason, message=_FORBIDDEN[reason])


STORE_UNAVAILABLE = Refusal(
    status=503,
    type="server_error",
    code="store_unavailable",
    message="The rate limits cannot be checked at the moment. Please try again in 1s.",
    retry_after_ms=1000,
)


def upstream_unavailable(status: int) -> Refusal:
    """The upstream gave no answer: 502, or 504 when it took too long."""
    message = "The upstream did not answer in time." if status == 504 else "The upstream could not be reached."
    return Refusal(status=status, type="server_error", code=UPSTREAM_UNAVAILABLE, message=message)


def limit_refused(refused: LimitRefused, who: str, model: str, budget_exceeded_status: int) -> Refusal:
    """A limit is in the way of a request to `model` by `who` (a name for people)."""
    limit = refused.limit
    is_budget = limit.name.endswith("budget")
    kind, code = _kind_of(limit.name)
    status, retry_after_ms, should_retry = 429, None, None
    if refused.kind == "never":
        should_retry = False
        if limit.name in ("tpm", "model_tpm") or is_budget:
            kind, code = "tokens", "request_too_large"
    elif refused.kind == "wait":
        retry_after_ms = refused.wait_ms
        code = "budget_reserved" if is_budget else code
    else:
        status = budget_exceeded_status
        if 0 <= refused.wait_ms <= _SOON_MS:
            retry_after_ms = refused.wait_ms
        else:
            should_retry = False
    return Refusal(
        status=status,
        type=kind,
        code=code,
        message=_message(refused, who, model, retry_after_ms),
        retry_after_ms=retry_after_ms,
        should_retry=should_retry,
        limit=limit,
    )


def _kind_of(name: str) -> tuple[str, str]:
    if name.endswith("budget"):
        return "insufficient_quota", "insufficient_quota"
    if name == "parallel":
        return "requests", "parallel_limit_exceeded"
    return ("requests" if name.endswith("rpm") else "tokens"), "rate_limit_exceeded"


def _message(refused: LimitRefused, who: str, model: str, retry_after_ms: int | None) -> str:
    limit = refused.limit
    of_model = f" for {model}" if model else ""
    numbers = _numbers(limit)
    whose = "the API key of user" if limit.of_key else "user"
    which = f"{of_model} for {whose} {who} on {_LIMIT_NAMES[limit.name]}: {numbers}."
    reached = "Budget exceeded" if limit.name.endswith("budget") else "Rate limit reached"
    if refused.kind == "never":
        reached = reached if limit.limit == 0 else "Request too large"
        return f"{reached}{which} It can never fit, with any wait."
    if retry_after_ms is not None:
        return f"{reached}{which} Please try again in {openai_duration(retry_after_ms).decode()}."
    if refused.wait_ms >= 0:
        return f"{reached}{which} It resets in {openai_duration(refused.wait_ms).decode()}."
    return f"{reached}{which} It does not reset by itself."


def _numbers(limit: LimitState) -> str:
    if limit.name.endswith("budget"):
        of, used, asked = (format_usd(nanos) for nanos in (limit.limit, limit.used, limit.asked))
    else:
        of, used, asked = str(limit.limit), str(limit.used), str(limit.asked)
    return f"limit {of}, used {used}, requested {asked}"


def refusal_headers(refusal: Refusal, request_id: str) -> Headers:
    """The headers of a refusal besides where the limits stand; `retry-after-ms` is exact, `retry-after` bounded."""
    headers: Headers = [(b"cache-control", b"no-store"), (b"x-request-id", request_id.encode())]
    if refusal.retry_after_ms is not None:
        seconds = min(_LONGEST_RETRY_AFTER_S, -(-refusal.retry_after_ms // 1000))
        headers.append((b"retry-after", b"%d" % seconds))
        headers.append((b"retry-after-ms", b"%d" % refusal.retry_after_ms))
    if refusal.should_retry is False:
        headers.append((b"x-should-retry", b"false"))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
