"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE_S = 30.0
_POLL_S = 0.02


async def until(condition: Callable[[], object], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Waits until a condition holds; fails with `what` when it does not in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {patience_s:g} s: {what}"
        await asyncio.sleep(_POLL_S)


async def until_async(condition: Callable[[], Awaitable[object]], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Waits likewise, for a condition that is itself asked for."""
    deadline = time.monotonic() + patience_s
    while not await condition():
        assert time.monotonic() < deadline, f"not in {patience_s:g} s: {what}"
        await asyncio.sleep(_POLL_S)
