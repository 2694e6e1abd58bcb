from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmweir.durations import Duration, encode, parse, pattern, period_end_ms
from llmweir.errors import InvalidValueError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES_MS = st.integers(-3_000_000_000_000, 10_000_000_000_000)


def _ms(text: str) -> int:
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("text", "length_ms", "months", "encoded"),
    [
        pytest.param("1s", 1_000, 0, "1000", id="shortest"),
        pytest.param("90m", 5_400_000, 0, "5400000", id="minutes"),
        pytest.param("30h", 108_000_000, 0, "108000000", id="hours"),
        pytest.param("1d", 86_400_000, 0, "86400000", id="days"),
        pytest.param("2w", 1_209_600_000, 0, "1209600000", id="weeks"),
        pytest.param("3mo", 0, 3, "3mo", id="months"),
        pytest.param("36525d", 3_155_760_000_000, 0, "3155760000000", id="100 years of days"),
        pytest.param("1200mo", 0, 1_200, "1200mo", id="100 years of months"),
    ],
)
def test_a_duration_is_exact_or_of_calendar_months(text: str, length_ms: int, months: int, encoded: str) -> None:
    assert parse(text) == Duration(text, length_ms, months)
    assert encode(parse(text)) == encoded


@pytest.mark.parametrize(
    "text",
    ["", "0s", "-1d", "+1d", " 1d", "1d ", "1d\n", "1.5h", "1", "d", "1y", "1D", "1d2h", "01d", "٣d", "1 d",
     "36526d", "1201mo", "3155760001s", "9" * 100_000 + "s", "NaN", "1e3s", "1M"],
    ids=lambda text: repr(text)[:16],
)  # fmt: skip
def test_anything_else_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"^A duration is .*\.$"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "anchor", "now", "end"),
    [
        pytest.param("1d", "2026-01-01T06:00", "2026-01-01T06:00", "2026-01-02T06:00", id="at the anchor"),
        pytest.param("1d", "2026-01-01T06:00", "2026-01-02T06:00", "2026-01-03T06:00", id="an end is in the next"),
        pytest.param("1d", "2026-01-01T06:00", "2025-12-01T00:00", "2026-01-02T06:00", id="before the anchor"),
        pytest.param("1mo", "2026-01-31T01:02:03.004", "2026-02-01", "2026-02-28T01:02:03.004", id="clamped"),
        pytest.param("1mo", "2026-01-31", "2026-02-28", "2026-03-31", id="from the anchor, not from the clamped day"),
        pytest.param("1mo", "2024-01-31", "2024-02-01", "2024-02-29", id="leap year"),
        pytest.param("1mo", "2100-01-31", "2100-02-01", "2100-02-28", id="century without leap day"),
        pytest.param("12mo", "2024-02-29", "2027-06-01", "2028-02-29", id="leap day comes back"),
        pytest.param("3mo", "2026-11-30", "2026-12-01", "2027-02-28", id="over the new year"),
        pytest.param("1mo", "2026-01-31", "2020-01-01", "2026-02-28", id="months before the anchor"),
        pytest.param("1200mo", "2026-01-31", "2026-02-01", "2126-01-31", id="a century"),
    ],
)
def test_a_period_ends_a_whole_number_of_durations_after_the_anchor(text: str, anchor: str, now: str, end: str) -> None:
    assert period_end_ms(parse(text), _ms(anchor), _ms(now)) == _ms(end)


@given(st.integers(1, 1_200), _TIMES_MS, st.integers(0, 3_000_000_000_000))
def test_a_month_period_agrees_with_the_calendar(months: int, anchor_ms: int, later_ms: int) -> None:
    now_ms = anchor_ms + later_ms
    end_ms = period_end_ms(Duration("", 0, months), anchor_ms, now_ms)
    anchor, end = (_EPOCH + timedelta(milliseconds=at) for at in (anchor_ms, end_ms))
    passed = (end.year - anchor.year) * 12 + end.month - anchor.month
    assert end_ms > now_ms
    assert passed % months == 0
    assert end.day == min(anchor.day, calendar.monthrange(end.year, end.month)[1])
    assert end.timetz() == anchor.timetz()
    if passed > months:
        assert period_end_ms(Duration("", 0, passed - months), anchor_ms, anchor_ms) <= now_ms


@given(st.integers(1, 10**9), _TIMES_MS, _TIMES_MS)
def test_an_exact_period_is_the_first_that_ends_after_now(seconds: int, anchor_ms: int, now_ms: int) -> None:
    length_ms = seconds * 1_000
    end_ms = period_end_ms(Duration("", length_ms, 0), anchor_ms, now_ms)
    assert end_ms > now_ms
    assert (end_ms - anchor_ms) % length_ms == 0
    assert end_ms - length_ms <= max(now_ms, anchor_ms)


@pytest.mark.parametrize("unit", ["s", "m", "h", "d", "w", "mo"])
def test_the_pattern_in_the_schema_takes_what_is_read_and_nothing_else(unit: str) -> None:
    longest = {"s": 3_155_760_000, "m": 52_596_000, "h": 876_600, "d": 36_525, "w": 5_217, "mo": 1_200}[unit]
    written = re.compile(pattern())
    for count in (0, 1, 9, 10, 11, 99, 100, 999, longest // 2, longest - 1, longest, longest + 1, longest * 10):
        assert bool(written.fullmatch(f"{count}{unit}")) is (0 < count <= longest), count
