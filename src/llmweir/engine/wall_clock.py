"""This machine's clock, where Redis' own is not asked."""

from __future__ import annotations

import time


def wall_clock_ms() -> int:
    """The time in ms since 1970 UTC."""
    return time.time_ns() // 1_000_000
