"""Where a caller stands, as headers: on every gated answer, 200, 429 and streams alike.

OpenAI's `x-ratelimit-*`, on Anthropic's paths `anthropic-ratelimit-*` as well, the IETF's `RateLimit` and
`RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers), and the budget. A limit that is not set has no header.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache

from llmweir.decision import NO_LIMIT, Dialect, Standing
from llmweir.money import format_usd
from llmweir.traffic.asgi import Headers

_UPSTREAM_LIMIT_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-", b"ratelimit", b"x-llmweir-")


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


def standing_headers(standing: Standing, dialect: Dialect) -> Headers:
    """Renders where the limits stand; when a model's limit binds tighter than the user's, the tighter is shown."""
    headers: Headers = []
    policies: list[bytes] = []
    states: list[bytes] = []
    reset_ms = standing.window_reset_ms
    reset_s = b"%d" % -(-reset_ms // 1000)
    for kind, user_limit, user_used, model_limit, model_used in (
        ("requests", standing.rpm_limit, standing.rpm_used, standing.model_rpm_limit, standing.model_rpm_used),
        ("tokens", standing.tpm_limit, standing.tpm_used, standing.model_tpm_limit, standing.model_tpm_used),
    ):
        limit, remaining = user_limit, user_limit - user_used
        if user_limit != NO_LIMIT:
            _add_policy(policies, states, "user-rpm" if kind == "requests" else "user-tpm", limit, remaining, reset_s)
        if model_limit != NO_LIMIT:
            model_remaining = model_limit - model_used
            name = "user-model-rpm" if kind == "requests" else "user-model-tpm"
            _add_policy(policies, states, name, model_limit, model_remaining, reset_s)
            if user_limit == NO_LIMIT or model_remaining < remaining:
                limit, remaining = model_limit, model_remaining
        if limit != NO_LIMIT:
            _add_limit(headers, kind, limit, remaining, reset_ms, dialect)
    if policies:
        headers.append((b"ratelimit-policy", b", ".join(policies)))
        headers.append((b"ratelimit", b", ".join(states)))
    if standing.budget_limit_nanos != NO_LIMIT or standing.model_budget_limit_nanos != NO_LIMIT:
        _add_budget(headers, standing)
    return headers


def _add_policy(
    policies: list[bytes], states: list[bytes], name: str, limit: int, remaining: int, reset_s: bytes
) -> None:
    policies.append(_policy(name, limit))
    states.append(b'"%b";r=%d;t=%b' % (name.encode(), max(remaining, 0), reset_s))


@lru_cache(maxsize=4096)
def _policy(name: str, limit: int) -> bytes:
    return b'"%b";q=%d;w=60' % (name.encode(), limit)


_NAMES = {
    kind: tuple(f"x-ratelimit-{part}-{kind}".encode() for part in ("limit", "remaining", "reset"))
    + tuple(f"anthropic-ratelimit-{kind}-{part}".encode() for part in ("limit", "remaining", "reset"))
    for kind in ("requests", "tokens")
}


def _add_limit(headers: Headers, kind: str, limit: int, remaining: int, reset_ms: int, dialect: Dialect) -> None:
    names = _NAMES[kind]
    limit_text, remaining_text = b"%d" % limit, b"%d" % max(remaining, 0)
    headers.append((names[0], limit_text))
    headers.append((names[1], remaining_text))
    headers.append((names[2], openai_duration(reset_ms)))
    if dialect == "anthropic":
        headers.append((names[3], limit_text))
        headers.append((names[4], remaining_text))
        headers.append((names[5], _rfc3339(int(time.time() * 1000 + reset_ms + 999) // 1000)))


def _add_budget(headers: Headers, standing: Standing) -> None:
    limit, used, reset_ms = standing.budget_limit_nanos, standing.budget_used_nanos, standing.budget_reset_ms
    model_limit, model_used = standing.model_budget_limit_nanos, standing.model_budget_used_nanos
    if limit == NO_LIMIT or (model_limit != NO_LIMIT and model_limit - model_used < limit - used):
        limit, used, reset_ms = model_limit, model_used, standing.model_budget_reset_ms
    headers.append((b"x-llmweir-budget-limit-usd", _usd(limit)))
    headers.append((b"x-llmweir-budget-remaining-usd", format_usd(max(limit - used, 0)).encode()))
    if reset_ms != NO_LIMIT:
        headers.append((b"x-llmweir-budget-reset", openai_duration(reset_ms // 1000 * 1000)))


@lru_cache(maxsize=4096)
def _usd(nanos: int) -> bytes:
    return format_usd(nanos).encode()


@lru_cache(maxsize=256)
def _rfc3339(at_s: int) -> bytes:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()


def without_limits(headers: Headers) -> Headers:
    """An answer's headers without the rate limits of the upstream's own account: those are not the caller's."""
    return [header for header in headers if not header[0].startswith(_UPSTREAM_LIMIT_PREFIXES)]
