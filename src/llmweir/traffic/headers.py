"""Where a caller stands, as headers: on every gated answer, 200, 429 and streams alike.

OpenAI's `x-ratelimit-*`, on Anthropic's paths `anthropic-ratelimit-*` as well, the IETF's `RateLimit` and
`RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers), and the budget. A limit that is not set has no header.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

from llmweir.decision import NO_LIMIT, Dialect, Standing
from llmweir.money import format_usd
from llmweir.traffic.asgi import Headers

_UPSTREAM_LIMIT_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-", b"ratelimit", b"x-llmweir-")
_POLICIES = ("user-rpm", "user-model-rpm", "user-tpm", "user-model-tpm")


def standing_headers(standing: Standing, dialect: Dialect) -> Headers:
    """Renders where the limits stand; when a model's limit binds tighter than the user's, the tighter is shown."""
    headers: Headers = []
    rpm, model_rpm = standing.rpm_limit, standing.model_rpm_limit
    tpm, model_tpm = standing.tpm_limit, standing.model_tpm_limit
    lefts: list[int] = []
    requests = tokens = None
    reset_ms = standing.window_reset_ms
    reset_requests, reset_tokens, reset_s = _resets(reset_ms)
    if rpm != NO_LIMIT or model_rpm != NO_LIMIT:
        requests = limit, left = _tighter(lefts, rpm, standing.rpm_used, model_rpm, standing.model_rpm_used)
        headers += (_limit("requests", limit), (b"x-ratelimit-remaining-requests", b"%d" % left), reset_requests)
    if tpm != NO_LIMIT or model_tpm != NO_LIMIT:
        tokens = limit, left = _tighter(lefts, tpm, standing.tpm_used, model_tpm, standing.model_tpm_used)
        headers += (_limit("tokens", limit), (b"x-ratelimit-remaining-tokens", b"%d" % left), reset_tokens)
    if dialect == "anthropic":
        _add_anthropic(headers, requests, tokens, reset_ms)
    if lefts:
        policy, states = _policies(rpm, model_rpm, tpm, model_tpm, reset_s)
        headers += (policy, (b"ratelimit", states % (*lefts,)))
    if standing.budget_limit_nanos != NO_LIMIT or standing.model_budget_limit_nanos != NO_LIMIT:
        _add_budget(headers, standing)
    return headers


def _tighter(lefts: list[int], limit: int, used: int, model_limit: int, model_used: int) -> tuple[int, int]:
    """The limit that binds tighter, and what is left of it; `lefts` gets what is left of each that is set."""
    left = limit - used if used < limit else 0
    if model_limit == NO_LIMIT:
        lefts.append(left)
        return limit, left
    model_left = model_limit - model_used if model_used < model_limit else 0
    if limit == NO_LIMIT:
        lefts.append(model_left)
        return model_limit, model_left
    lefts += (left, model_left)
    return (model_limit, model_left) if model_left < left else (limit, left)


@lru_cache(maxsize=8192)
def _limit(kind: str, limit: int) -> tuple[bytes, bytes]:
    return f"x-ratelimit-limit-{kind}".encode(), b"%d" % limit


@lru_cache(maxsize=8192)
def _resets(reset_ms: int) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes], int]:
    """The two headers of the time until a window is empty, and that time in whole seconds."""
    reset = openai_duration(reset_ms)
    return (b"x-ratelimit-reset-requests", reset), (b"x-ratelimit-reset-tokens", reset), -(-reset_ms // 1000)


@lru_cache(maxsize=8192)
def _policies(*limits_and_reset: int) -> tuple[tuple[bytes, bytes], bytes]:
    """The `RateLimit-Policy` header of these limits, and the form that `RateLimit` is filled into."""
    *limits, reset_s = limits_and_reset
    named = [(name, limit) for name, limit in zip(_POLICIES, limits, strict=True) if limit != NO_LIMIT]
    policy = ", ".join(f'"{name}";q={limit};w=60' for name, limit in named)
    states = ", ".join(f'"{name}";r=%d;t={reset_s}' for name, _ in named)
    return (b"ratelimit-policy", policy.encode()), states.encode()


def _add_anthropic(
    headers: Headers, requests: tuple[int, int] | None, tokens: tuple[int, int] | None, reset_ms: int
) -> None:
    reset = _rfc3339(int(time.time() * 1000 + reset_ms + 999) // 1000)
    for kind, binding in ((b"requests", requests), (b"tokens", tokens)):
        if binding is not None:
            for part, value in ((b"limit", b"%d" % binding[0]), (b"remaining", b"%d" % binding[1]), (b"reset", reset)):
                headers.append((b"anthropic-ratelimit-%b-%b" % (kind, part), value))


def _add_budget(headers: Headers, standing: Standing) -> None:
    limit, reset_ms = standing.budget_limit_nanos, standing.budget_reset_ms
    left = limit - standing.budget_used_nanos
    model_limit = standing.model_budget_limit_nanos
    if model_limit != NO_LIMIT:
        model_left = model_limit - standing.model_budget_used_nanos
        if limit == NO_LIMIT or model_left < left:
            limit, left, reset_ms = model_limit, model_left, standing.model_budget_reset_ms
    left_usd = format_usd(left).encode() if left > 0 else b"0"
    headers += (_budget_limit(limit), (b"x-llmweir-budget-remaining-usd", left_usd))
    if reset_ms != NO_LIMIT:
        headers.append(_budget_reset(-(-reset_ms // 1000)))


@lru_cache(maxsize=4096)
def _budget_limit(nanos: int) -> tuple[bytes, bytes]:
    return b"x-llmweir-budget-limit-usd", format_usd(nanos).encode()


@lru_cache(maxsize=4096)
def _budget_reset(reset_s: int) -> tuple[bytes, bytes]:
    return b"x-llmweir-budget-reset", openai_duration(reset_s * 1000)


@lru_cache(maxsize=8192)
def openai_duration(ms: int) -> bytes:
    """Spells a time as OpenAI does: `12ms`, `3.89s`, `1m30s`, `2h5m0s`."""
    if ms < 1000:
        return b"%dms" % ms
    minutes, rest_ms = divmod(ms, 60_000)
    seconds, thousandths = divmod(rest_ms, 1000)
    text = b"%d" % seconds
    if thousandths:
        text += (b".%03d" % thousandths).rstrip(b"0")
    if not minutes:
        return text + b"s"
    hours, minutes = divmod(minutes, 60)
    return (b"%dh%dm" % (hours, minutes) if hours else b"%dm" % minutes) + text + b"s"


@lru_cache(maxsize=256)
def _rfc3339(at_s: int) -> bytes:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()


def passed_on(headers: Iterable[tuple[bytes, bytes]]) -> tuple[Headers, bytes, bytes]:
    """An answer's headers without the rate limits of the upstream's own account: those are not the caller's.

    Beside them its content type and its content coding, in small letters, empty where there is none. Some frameworks
    keep the letter case an app wrote names in.
    """
    kept: Headers = []
    content_type = encoding = b""
    for name, value in headers:
        lowered = name.lower()
        if lowered.startswith(_UPSTREAM_LIMIT_PREFIXES):
            continue
        kept.append((lowered, value))
        if lowered == b"content-type":
            content_type = value.lower()
        elif lowered == b"content-encoding":
            encoding = value.strip().lower()
    return kept, content_type, encoding
