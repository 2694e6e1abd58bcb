from __future__ import annotations

import json

import pytest

from llmweir.decision import LimitState, Refusal
from llmweir.errors import UnreadableRequestError
from llmweir.traffic.formats import error_body, problem_body, refusal_of

LIMIT = LimitState("model_tpm", "gpt-4o", 30000, 28039, 3906, 3890)
TPM = Refusal(status=429, type="tokens", code="rate_limit_exceeded", message="Slow.", retry_after_ms=3890, limit=LIMIT)


def refusal(status: int, code: str = "x") -> Refusal:
    return Refusal(status=status, type="invalid_request_error", code=code, message="No.")


def test_openai_gets_its_four_members() -> None:
    assert json.loads(error_body("openai", TPM, "r1")) == {
        "error": {"message": "Slow.", "type": "tokens", "param": None, "code": "rate_limit_exceeded"}
    }


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "x", "invalid_request_error"),
        (401, "x", "authentication_error"),
        (402, "insufficient_quota", "billing_error"),
        (403, "x", "permission_error"),
        (404, "x", "not_found_error"),
        (413, "x", "invalid_request_error"),
        (415, "x", "invalid_request_error"),
        (429, "x", "rate_limit_error"),
        (429, "budget_reserved", "rate_limit_error"),
        (429, "insufficient_quota", "billing_error"),
        (502, "x", "api_error"),
        (503, "x", "overloaded_error"),
        (504, "x", "timeout_error"),
    ],
)
def test_anthropic_gets_its_own_types(status: int, code: str, kind: str) -> None:
    assert json.loads(error_body("anthropic", refusal(status, code), "r1")) == {
        "type": "error",
        "error": {"type": kind, "message": "No."},
        "request_id": "r1",
    }


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
    ],
)
def test_gemini_gets_googles_status_names(status: int, name: str) -> None:
    error = json.loads(error_body("gemini", refusal(status), "r1"))["error"]
    assert (error["code"], error["status"], error["message"]) == (status, name, "No.")
    assert [detail["@type"].rpartition(".")[2] for detail in error["details"]] == ["ErrorInfo"]


def test_gemini_is_told_the_quota_and_when_to_retry() -> None:
    details = json.loads(error_body("gemini", TPM, "r1"))["error"]["details"]
    assert details[1] == {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"subject": "user-model-tpm", "description": "Slow."}],
    }
    assert details[2] == {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3.890s"}


def test_a_problem_names_the_policy_and_keeps_the_error_inside() -> None:
    problem = json.loads(problem_body("anthropic", TPM, "r1"))
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert (problem["status"], problem["detail"]) == (429, "Slow.")
    assert problem["violated-policies"] == ["user-model-tpm"]
    assert problem["error"] == {"type": "rate_limit_error", "message": "Slow."}


@pytest.mark.parametrize(("status", "title"), [(403, "Forbidden"), (599, "Error")])
def test_a_problem_without_a_limit_is_named_by_its_status(status: int, title: str) -> None:
    problem = json.loads(problem_body("openai", refusal(status), "r1"))
    assert (problem["type"], problem["title"]) == ("about:blank", title)
    assert "violated-policies" not in problem


def test_an_unreadable_request_becomes_a_refusal() -> None:
    made = refusal_of(UnreadableRequestError(415, "unsupported_charset", "UTF-8, please.", param="x"))
    assert (made.status, made.type, made.code, made.message, made.param, made.limit) == (
        415, "invalid_request_error", "unsupported_charset", "UTF-8, please.", "x", None,
    )  # fmt: skip
