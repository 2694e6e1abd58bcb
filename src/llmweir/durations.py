"""Durations as people write them ("30s", "2w", "1mo"), and the ends of the periods they make."""

from __future__ import annotations

import re

import msgspec

from llmweir.errors import InvalidValueError

_DAY_MS = 86_400_000
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": _DAY_MS, "w": 7 * _DAY_MS}
_LONGEST_MS = 36_525 * _DAY_MS
_LONGEST_MONTHS = 1_200
_WRITTEN = re.compile(r"([1-9][0-9]{0,9})(s|mo|m|h|d|w)")


class Duration(msgspec.Struct, frozen=True):
    """A length of time: exact (`length_ms`, with `months` 0) or of calendar months (`months`, with `length_ms` 0).

    `text` is the duration as it was sent.
    """

    text: str
    length_ms: int
    months: int


def parse(text: str) -> Duration:
    """Reads one whole number from 1 up and one unit: s, m (minutes), h, d, w or mo (calendar months).

    Raises InvalidValueError for anything else, and for what is longer than 100 years (36525 days or 1200 months).
    """
    written = _WRITTEN.fullmatch(text)
    if written is None:
        raise InvalidValueError(
            "A duration is a whole number from 1 up and one unit, without spaces: 30s, 90m, 30h, 30d, 2w or 1mo."
        )
    count, unit = int(written[1]), written[2]
    months = count if unit == "mo" else 0
    length_ms = 0 if unit == "mo" else count * _UNIT_MS[unit]
    if length_ms > _LONGEST_MS or months > _LONGEST_MONTHS:
        raise InvalidValueError("A duration is at most 100 years: 36525d or 1200mo.")
    return Duration(text, length_ms, months)


def pattern() -> str:
    """A regular expression, as JSON Schema has them, of all that `parse` reads."""
    most = {unit: _LONGEST_MS // length_ms for unit, length_ms in _UNIT_MS.items()} | {"mo": _LONGEST_MONTHS}
    return "({})".format("|".join(f"({_up_to(str(count))}){unit}" for unit, count in most.items()))


def _up_to(most: str) -> str:
    """The whole numbers from 1 to `most`: those with fewer digits, those that are less from some digit on, itself."""
    rest = len(most) - 1
    ranges = [f"[1-9][0-9]{{0,{rest - 1}}}"]
    for at, digit in enumerate(most):
        first = 0 if at else 1
        if int(digit) > first:
            ranges.append(f"{most[:at]}[{first}-{int(digit) - 1}][0-9]{{{rest - at}}}")
    return "|".join([*ranges, most])


def encode(duration: Duration) -> str:
    """Spells a duration for the scripts: the milliseconds of an exact one ("86400000"), or "3mo"."""
    return f"{duration.months}mo" if duration.months else str(duration.length_ms)


def period_end_ms(duration: Duration, anchor_ms: int, now_ms: int) -> int:
    """Answers when the period that `now_ms` lies in ends, in ms since 1970 UTC.

    Periods follow each other from `anchor_ms` on; the n-th ends at the anchor plus n durations, and the moment of
    its end belongs to the next. Before the anchor the answer is the end of the first. Months are counted from the
    anchor itself, so that a day clamped in February is not lost: Jan 31, Feb 28, Mar 31.
    """
    if duration.months:
        return _month_period_end_ms(duration.months, anchor_ms, now_ms)
    periods = max(1, (now_ms - anchor_ms) // duration.length_ms + 1)
    return anchor_ms + periods * duration.length_ms


def _month_period_end_ms(months: int, anchor_ms: int, now_ms: int) -> int:
    passed = _month_number(now_ms) - _month_number(anchor_ms)
    periods = max(1, passed // months)
    end_ms = _plus_months_ms(anchor_ms, periods * months)
    return end_ms if end_ms > now_ms else _plus_months_ms(anchor_ms, (periods + 1) * months)


def _month_number(at_ms: int) -> int:
    year, month, _ = _civil_from_days(at_ms // _DAY_MS)
    return year * 12 + month - 1


def _plus_months_ms(at_ms: int, months: int) -> int:
    days, time_of_day_ms = divmod(at_ms, _DAY_MS)
    _, _, day = _civil_from_days(days)
    year, month_index = divmod(_month_number(at_ms) + months, 12)
    day = min(day, _days_in_month(year, month_index + 1))
    return _days_from_civil(year, month_index + 1, day) * _DAY_MS + time_of_day_ms


def _days_in_month(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


# The two conversions count years from 1 March, so that the leap day comes last, in eras of 400 years (146097 days).
# 719468 days lie between 0000-03-01 and 1970-01-01. https://howardhinnant.github.io/date_algorithms.html


def _days_from_civil(year: int, month: int, day: int) -> int:
    march_year = year - (month <= 2)
    era, year_of_era = divmod(march_year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def _civil_from_days(days: int) -> tuple[int, int, int]:
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    march_month = (5 * day_of_year + 2) // 153
    month = march_month + 3 if march_month < 10 else march_month - 9
    return era * 400 + year_of_era + (month <= 2), month, day_of_year - (153 * march_month + 2) // 5 + 1
