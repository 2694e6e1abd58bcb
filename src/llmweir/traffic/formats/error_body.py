"""Writes a refusal in the caller's own dialect, or as an RFC 9457 problem."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import msgspec

from llmweir.decision import Dialect, LimitState, Refusal
from llmweir.errors import UnreadableRequestError

_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# google.rpc.Code, by the HTTP status it maps to.
_GEMINI_STATUSES: Final = {
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_RPC: Final = "type.googleapis.com/google.rpc."
_QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"


def refusal_of(error: UnreadableRequestError) -> Refusal:
    """Return the refusal that an unreadable request is answered with."""
    return Refusal(
        status=error.status, type="invalid_request_error", code=error.code, message=error.message, param=error.param
    )


def error_body(dialect: Dialect, refusal: Refusal, request_id: str) -> bytes:
    """Return the JSON body of a refusal in a dialect."""
    return msgspec.json.encode(_content(dialect, refusal, request_id))


def problem_body(dialect: Dialect, refusal: Refusal, request_id: str) -> bytes:
    """Return an `application/problem+json` body (RFC 9457), the dialect's `error` member kept inside.

    A limit in the way gives the problem type `quota-exceeded` and `violated-policies`, as the IETF draft on
    RateLimit header fields has it.
    """
    problem: dict[str, object] = {
        "type": "about:blank",
        "title": _title(refusal.status),
        "status": refusal.status,
        "detail": refusal.message,
    }
    if refusal.limit is not None:
        problem["type"] = _QUOTA_EXCEEDED
        problem["title"] = "Request cannot be satisfied as assigned quota has been exceeded"
        problem["violated-policies"] = [policy_name(refusal.limit)]
    content = _content(dialect, refusal, request_id)
    content.pop("type", None)
    return msgspec.json.encode({**problem, **content})


def policy_name(limit: LimitState) -> str:
    """Return a limit's name as `RateLimit-Policy` has it, such as `user-rpm` or `user-model-tpm`."""
    return "user-" + limit.name.replace("_", "-")


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _content(dialect: Dialect, refusal: Refusal, request_id: str) -> dict[str, object]:
    if dialect == "anthropic":
        error: dict[str, object] = {"type": _anthropic_type(refusal), "message": refusal.message}
        return {"type": "error", "error": error, "request_id": request_id}
    if dialect == "gemini":
        return {"error": _gemini_error(refusal, request_id)}
    return {"error": {"message": refusal.message, "type": refusal.type, "param": refusal.param, "code": refusal.code}}


def _anthropic_type(refusal: Refusal) -> str:
    """Return the error type: SDKs go by the status, so a spent budget may name itself at any of them."""
    if refusal.code == "insufficient_quota":
        return "billing_error"
    return _ANTHROPIC_TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")


def _gemini_error(refusal: Refusal, request_id: str) -> dict[str, object]:
    details: list[dict[str, object]] = [
        {
            "@type": _RPC + "ErrorInfo",
            "reason": refusal.code.upper(),
            "domain": "llmweir",
            "metadata": {"requestId": request_id},
        }
    ]
    if refusal.limit is not None:
        violation = {"subject": policy_name(refusal.limit), "description": refusal.message}
        details.append({"@type": _RPC + "QuotaFailure", "violations": [violation]})
    if refusal.retry_after_ms is not None:
        details.append({"@type": _RPC + "RetryInfo", "retryDelay": f"{refusal.retry_after_ms / 1000:.3f}s"})
    status = _GEMINI_STATUSES.get(refusal.status, "INVALID_ARGUMENT" if refusal.status < 500 else "INTERNAL")
    return {"code": refusal.status, "message": refusal.message, "status": status, "details": details}
