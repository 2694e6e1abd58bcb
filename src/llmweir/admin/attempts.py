"""Counts wrong keys per client address, so that nobody tries them by the thousand."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

FAILURES_PER_MINUTE = 20
MAX_ADDRESSES = 4_096


class _Allowance(msgspec.Struct):
    left: float
    at_s: float


class FailedAttempts:
    """An allowance of wrong keys for each address: so many at once, and as many a minute after that.

    Addresses of one IPv6 network (/64) share theirs. The addresses heard of longest ago are forgotten first, so
    memory stays bounded; a worker counts for itself. `clock_s` is a clock that only moves forward.
    """

    def __init__(
        self,
        per_minute: int = FAILURES_PER_MINUTE,
        max_addresses: int = MAX_ADDRESSES,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_minute = per_minute
        self._max_addresses = max_addresses
        self._clock_s = clock_s
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()

    def count(self, address: str) -> int:
        """Counts a wrong key from an address; returns the seconds to wait once there were too many, else 0."""
        now_s = self._clock_s()
        network = _network(address)
        allowance = self._allowances.pop(network, None) or _Allowance(self._per_minute, now_s)
        self._allowances[network] = allowance
        if len(self._allowances) > self._max_addresses:
            self._allowances.popitem(last=False)
        per_s = self._per_minute / 60
        allowance.left = min(self._per_minute, allowance.left + (now_s - allowance.at_s) * per_s)
        allowance.at_s = now_s
        if allowance.left < 1:
            return math.ceil((1 - allowance.left) / per_s)
        allowance.left -= 1
        return 0


def _network(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a unix socket has none
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.IPv6Network((ip.packed[:8] + bytes(8), 64)))
    return str(ip)
