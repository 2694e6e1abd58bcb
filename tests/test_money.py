from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmweir.errors import InvalidValueError
from llmweir.money import format_usd, nanos_to_usd, usd_to_nanos

_ALL_APART = 2**23 * 10**9


@pytest.mark.parametrize(
    ("usd", "nanos", "text"),
    [
        pytest.param(0.1, 100_000_000, "0.1", id="a tenth"),
        pytest.param(5, 5_000_000_000, "5", id="whole"),
        pytest.param(5.0, 5_000_000_000, "5", id="whole float"),
        pytest.param(1e-9, 1, "0.000000001", id="finest"),
        pytest.param("12.50", 12_500_000_000, "12.5", id="text"),
        pytest.param(Decimal("0.3"), 300_000_000, "0.3", id="decimal"),
        pytest.param("0.1" + "0" * 60, 100_000_000, "0.1", id="zeros beyond a nano"),
        pytest.param(9_000_000, 9 * 10**15, "9000000", id="most"),
        pytest.param(-0.0, 0, "0", id="negative zero"),
    ],
)
def test_an_amount_is_read_exactly(usd: float | str | Decimal, nanos: int, text: str) -> None:
    assert usd_to_nanos(usd) == nanos
    assert format_usd(nanos) == text
    assert nanos_to_usd(nanos) == float(usd)


@pytest.mark.parametrize(
    "usd",
    [-1, -1e-9, 9_000_000.1, 10**4000, 1e-10, 0.1234567891, float("nan"), float("inf"), -float("inf"), True, False,
     Decimal("sNaN"), Decimal("1e-999999"), Decimal("Infinity"), "", "1_0", " 1", "٣", "1e999", "9" * 9999, "nan"],
    ids=lambda usd: repr(usd)[:16],
)  # fmt: skip
def test_anything_else_is_refused(usd: float | str | Decimal) -> None:
    with pytest.raises(InvalidValueError, match="An amount of USD"):
        usd_to_nanos(usd)


@given(st.integers(0, _ALL_APART))
def test_every_nano_comes_back_through_json(nanos: int) -> None:
    assert usd_to_nanos(json.loads(json.dumps(nanos_to_usd(nanos)))) == nanos


@given(st.integers(_ALL_APART, 9 * 10**15))
def test_above_eight_million_a_float_is_off_by_one_nano_at_most(nanos: int) -> None:
    usd = nanos_to_usd(nanos)
    assert abs(usd_to_nanos(usd) - nanos) <= 1
    assert nanos_to_usd(usd_to_nanos(usd)) == usd


@given(st.integers(0, 9 * 10**15))
def test_the_text_of_every_amount_is_exact(nanos: int) -> None:
    assert usd_to_nanos(format_usd(nanos)) == nanos


def test_a_debt_keeps_its_sign() -> None:
    assert format_usd(-1_500_000_000) == "-1.5"
    assert nanos_to_usd(-1_500_000_000) == -1.5
