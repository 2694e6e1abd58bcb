"""The lists of the settings and the known paths, together."""

from __future__ import annotations

import pytest

from llmweir.errors import UnreadableRequestError
from llmweir.traffic.rules import PathRules

RULES = PathRules(("/health*", "GET /status"), ("GET /v1/models*", "/free"))

VERDICTS = {
    "known": ("POST", "/v1/chat/completions", "gated", "metered"),
    "unknown": ("POST", "/v1/files", "gated", "unknown"),
    "free by the list": ("GET", "/v1/models", "free", "unknown"),
    "free by the list's prefix": ("GET", "/v1/models/gpt-4o", "free", "unknown"),
    "free by any method": ("DELETE", "/free", "free", "unknown"),
    "not free by another method": ("POST", "/v1/models", "gated", "unknown"),
    "not free by another case": ("GET", "/V1/models", "gated", "unknown"),
    "not free with more behind it": ("GET", "/free/more", "gated", "unknown"),
    "free by itself": ("POST", "/v1/messages/count_tokens", "free", "free"),
    "free by itself, Gemini's": ("POST", "/v1beta/models/m:countTokens", "free", "free"),
    "open": ("POST", "/health/live", "open", "unknown"),
    "open by its method": ("GET", "/status", "open", "unknown"),
    "not open by another method": ("POST", "/status", "gated", "unknown"),
}


@pytest.mark.parametrize(("method", "path", "access", "kind"), VERDICTS.values(), ids=VERDICTS)
def test_a_path_is_judged_by_the_lists_and_then_by_what_is_known(
    method: str, path: str, access: str, kind: str
) -> None:
    for _ in range(2):
        verdict = RULES.judge(method, path, path.encode())
        assert (verdict.access, verdict.route.kind) == (access, kind)


def test_what_is_open_comes_before_what_is_free() -> None:
    assert PathRules(("/a",), ("/a",)).judge("GET", "/a", b"/a").access == "open"


def test_a_known_path_may_be_opened_on_purpose() -> None:
    rules = PathRules(("POST /v1/embeddings",), ())
    assert rules.judge("POST", "/v1/embeddings", b"").access == "open"
    assert rules.judge("POST", "/v1/chat/completions", b"").access == "gated"


@pytest.mark.parametrize("path", ["/health/../v1/chat/completions", "/health//x", "/health/%2e%2e/x"])
def test_no_list_opens_a_path_that_could_be_read_as_two(path: str) -> None:
    with pytest.raises(UnreadableRequestError):
        RULES.judge("POST", path, path.encode())


def test_the_memory_of_paths_is_bounded_and_keeps_no_long_ones() -> None:
    rules = PathRules((), ())
    for number in range(3000):
        assert rules.judge("GET", f"/{number}", b"").access == "gated"
    rules.judge("GET", "/" + "x" * 300, b"")
    assert 0 < len(rules._remembered) <= 1024
    assert max(len(path) for _, path, _ in rules._remembered) <= 256


def test_a_raw_path_that_says_something_else_is_not_taken_for_a_remembered_one() -> None:
    rules = PathRules((), ())
    rules.judge("POST", "/v1/chat/completions", b"/v1/chat/completions")
    with pytest.raises(UnreadableRequestError):
        rules.judge("POST", "/v1/chat/completions", b"/v1/x/%2e%2e/chat/completions")
