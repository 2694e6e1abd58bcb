"""Where a caller stands, as headers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmweir.decision import NO_LIMIT, Dialect, Standing
from llmweir.traffic.headers import openai_duration, passed_on, standing_headers

NO_LIMITS = Standing(*[-1, 0, 12_400, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, -1, 0, -1])


def stands(**fields: int) -> Standing:
    return msgspec.structs.replace(NO_LIMITS, **fields)


def rendered(dialect: Dialect = "openai", /, **fields: int) -> dict[str, str]:
    headers = standing_headers(stands(**fields), dialect)
    names = [name for name, _ in headers]
    assert len(names) == len(set(names))
    assert all(name == name.lower() for name in names)
    return {name.decode(): value.decode() for name, value in headers}


DURATIONS = {
    "nothing": (0, "0ms"),
    "a millisecond": (1, "1ms"),
    "just below a second": (999, "999ms"),
    "a second": (1000, "1s"),
    "OpenAI's own example": (3890, "3.89s"),
    "a second and a millisecond": (1001, "1.001s"),
    "a half": (12_500, "12.5s"),
    "a minute": (60_000, "1m0s"),
    "a minute and a half": (90_000, "1m30s"),
    "a minute and a bit": (60_075, "1m0.075s"),
    "an hour": (3_600_000, "1h0m0s"),
    "hours": (7_500_000, "2h5m0s"),
    "thirty days": (2_592_000_000, "720h0m0s"),
}


@pytest.mark.parametrize(("ms", "text"), DURATIONS.values(), ids=DURATIONS)
def test_a_time_is_spelled_as_openai_does(ms: int, text: str) -> None:
    assert openai_duration(ms).decode() == text


@given(st.integers(0, 10**12))
def test_a_time_can_be_read_back_to_the_millisecond(ms: int) -> None:
    text = openai_duration(ms).decode()
    if text.endswith("ms"):
        assert int(text[:-2]) == ms
        return
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(\d+)(?:\.(\d{1,3}))?s", text)
    assert match is not None
    hours, minutes, seconds, fraction = match.groups()
    read_ms = (int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds)) * 1000
    assert read_ms + int((fraction or "0").ljust(3, "0")) == ms


def test_a_limit_that_is_not_set_has_no_header() -> None:
    assert rendered() == {}
    assert rendered("anthropic") == {}


def test_requests_and_tokens_of_a_user_are_shown() -> None:
    assert rendered(rpm_limit=60, rpm_used=19, tpm_limit=30_000, tpm_used=28_039) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "41",
        "x-ratelimit-reset-requests": "12.4s",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "1961",
        "x-ratelimit-reset-tokens": "12.4s",
        "ratelimit-policy": '"user-rpm";q=60;w=60, "user-tpm";q=30000;w=60',
        "ratelimit": '"user-rpm";r=41;t=13, "user-tpm";r=1961;t=13',
    }


TIGHTER = {
    "the user's alone": ((10, 3, -1, 0), ("10", "7")),
    "the model's alone": ((-1, 0, 5, 4), ("5", "1")),
    "the model's is tighter": ((10, 3, 5, 4), ("5", "1")),
    "the user's is tighter": ((10, 9, 50, 4), ("10", "1")),
    "both alike": ((10, 5, 8, 3), ("10", "5")),
    "the model's is in debt": ((10, 3, 5, 9), ("5", "0")),
    "the user's is in debt": ((10, 13, 50, 9), ("10", "0")),
    "the user's is zero": ((0, 0, 50, 9), ("0", "0")),
}


@pytest.mark.parametrize(("limits", "shown"), TIGHTER.values(), ids=TIGHTER)
@pytest.mark.parametrize(("kind", "name"), [("rpm", "requests"), ("tpm", "tokens")], ids=["requests", "tokens"])
def test_the_tighter_of_user_and_model_is_shown_and_both_are_named(
    limits: tuple[int, int, int, int], shown: tuple[str, str], kind: str, name: str
) -> None:
    limit, used, model_limit, model_used = limits
    headers = rendered(
        **{f"{kind}_limit": limit, f"{kind}_used": used},
        **{f"model_{kind}_limit": model_limit, f"model_{kind}_used": model_used},
    )
    assert (headers[f"x-ratelimit-limit-{name}"], headers[f"x-ratelimit-remaining-{name}"]) == shown
    assert (f'"user-{kind}"' in headers["ratelimit"]) == (limit != NO_LIMIT)
    assert (f'"user-model-{kind}"' in headers["ratelimit"]) == (model_limit != NO_LIMIT)
    assert headers["ratelimit"].count(";r=") == headers["ratelimit-policy"].count(";q=")
    other = "tokens" if name == "requests" else "requests"
    assert f"x-ratelimit-limit-{other}" not in headers


def test_on_anthropics_paths_its_own_headers_come_as_well_with_a_time_of_day() -> None:
    before = datetime.now(UTC)
    headers = rendered("anthropic", rpm_limit=60, rpm_used=60, tpm_limit=9, tpm_used=1)
    assert headers["anthropic-ratelimit-requests-limit"] == headers["x-ratelimit-limit-requests"] == "60"
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert headers["anthropic-ratelimit-tokens-limit"] == "9"
    assert headers["anthropic-ratelimit-tokens-remaining"] == "8"
    for kind in ("requests", "tokens"):
        reset = headers[f"anthropic-ratelimit-{kind}-reset"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reset)
        after = datetime.fromisoformat(reset) - before
        assert timedelta(seconds=12.4) <= after < timedelta(seconds=14)


BUDGETS = {
    "the user's, never again": ((1_500_000_000, 400_000_000, -1, -1, 0, -1), ("1.5", "1.1", None)),
    "the user's": ((1_500_000_000, 0, 86_400_000, -1, 0, -1), ("1.5", "1.5", "24h0m0s")),
    "the reset is not told too early": ((1_000_000_000, 0, 1_001, -1, 0, -1), ("1", "1", "2s")),
    "a nano-dollar": ((1, 0, -1, -1, 0, -1), ("0.000000001", "0.000000001", None)),
    "in debt": ((10**9, 2 * 10**9, -1, -1, 0, -1), ("1", "0", None)),
    "the model's alone": ((-1, 0, -1, 2 * 10**9, 10**9, 5_000), ("2", "1", "5s")),
    "the model's is tighter": ((9 * 10**9, 0, 60_000, 2 * 10**9, 10**9, -1), ("2", "1", None)),
    "the user's is tighter": ((10**9, 0, 60_000, 2 * 10**9, 0, 5_000), ("1", "1", "1m0s")),
}


@pytest.mark.parametrize(("stood", "shown"), BUDGETS.values(), ids=BUDGETS)
def test_the_tighter_budget_is_shown_in_dollars(stood: tuple[int, ...], shown: tuple[str, str, str | None]) -> None:
    names = (
        "budget_limit_nanos", "budget_used_nanos", "budget_reset_ms",
        "model_budget_limit_nanos", "model_budget_used_nanos", "model_budget_reset_ms",
    )  # fmt: skip
    headers = rendered(**dict(zip(names, stood, strict=True)))
    limit, remaining, reset = shown
    expected = {"x-llmweir-budget-limit-usd": limit, "x-llmweir-budget-remaining-usd": remaining}
    assert headers == (expected if reset is None else {**expected, "x-llmweir-budget-reset": reset})


def test_the_limits_of_the_upstreams_own_account_are_taken_out() -> None:
    kept = [(b"content-type", b"x"), (b"retry-after", b"1"), (b"x-request-id", b"1"), (b"x-rate", b"1")]
    dropped = [
        (b"x-ratelimit-limit-requests", b"1"), (b"anthropic-ratelimit-tokens-reset", b"1"), (b"ratelimit", b"1"),
        (b"ratelimit-policy", b"1"), (b"ratelimit-limit", b"1"), (b"x-llmweir-cost-usd", b"9"),
    ]  # fmt: skip
    assert passed_on([*kept[:2], *dropped, *kept[2:]])[0] == kept
