"""The allowance of wrong keys of each address."""

from __future__ import annotations

import pytest

from llmweir.admin.attempts import FailedAttempts


class Seconds:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_an_address_waits_once_its_allowance_is_spent_and_no_longer_than_it_is_told() -> None:
    clock = Seconds()
    attempts = FailedAttempts(per_minute=2, clock_s=clock)
    assert [attempts.count("192.0.2.1") for _ in range(3)] == [0, 0, 30]
    clock.now_s += 29
    assert attempts.count("192.0.2.1") == 1
    clock.now_s += 1
    assert [attempts.count("192.0.2.1") for _ in range(2)] == [0, 30]
    clock.now_s += 3600
    assert [attempts.count("192.0.2.1") for _ in range(3)] == [0, 0, 30]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        pytest.param("192.0.2.1", "192.0.2.2", False, id="two addresses"),
        pytest.param("2001:db8::1", "2001:db8::ffff:2", True, id="one IPv6 network"),
        pytest.param("2001:db8::1", "2001:db8:0:1::1", False, id="two IPv6 networks"),
        pytest.param("192.0.2.1", "::ffff:192.0.2.1", True, id="IPv4 in IPv6"),
        pytest.param("", "", True, id="unix socket"),
    ],
)
def test_who_shares_an_allowance(one: str, other: str, is_same: bool) -> None:
    attempts = FailedAttempts(per_minute=1, clock_s=Seconds())
    assert attempts.count(one) == 0
    assert (attempts.count(other) > 0) == is_same


def test_memory_stays_bounded_and_the_oldest_address_is_forgotten_first() -> None:
    attempts = FailedAttempts(per_minute=1, max_addresses=3, clock_s=Seconds())
    for address in ("a", "b", "c", "a", "d"):
        attempts.count(address)
    assert list(attempts._allowances) == ["c", "a", "d"]
