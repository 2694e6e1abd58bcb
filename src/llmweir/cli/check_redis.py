"""What of a Redis `llmweir check` looks at: whether it answers and how soon, what it is like, what it allows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from functools import partial

from llmweir.engine.any_link import AnyLink
from llmweir.engine.connect import connect
from llmweir.engine.embedded import EmbeddedValkey
from llmweir.engine.inspection import inspect
from llmweir.engine.inspection_rights import try_rights
from llmweir.engine.inspection_rules import Remark
from llmweir.engine.redis_url import read_redis_url
from llmweir.engine.wire import ReplyError
from llmweir.errors import StoreUnavailableError
from llmweir.settings import Settings

_PATIENCE_MS = 10_000
_PINGS = 5


class LinkLog(logging.Handler):
    """Keeps why no connection came about: the link tells that to the log alone. Nothing else is shown."""

    def __init__(self) -> None:
        super().__init__()
        self._why = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Takes an event."""
        if record.getMessage().startswith("store_cannot_connect"):
            self._why = record.getMessage().partition("error=")[2].strip("'\"").rstrip(".")

    def explained(self, reason: str) -> str:
        """A reason, and what is known beyond it."""
        return f"{reason} ({self._why})" if self._why else reason


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[AnyLink]:
    """A link to the Redis of the settings, or to the bundled Valkey, which runs at least for so long.

    Raises StoreUnavailableError where that does not start.
    """
    with contextlib.ExitStack() as stack:
        if settings.redis_url is not None:
            url = settings.redis_url.get_secret_value()
        else:
            start = partial(EmbeddedValkey.start, settings.data_dir, fsync=settings.fsync)
            url = stack.enter_context(await asyncio.to_thread(start)).url
        link = connect(url, timeout_ms=max(_PATIENCE_MS, settings.store_timeout_ms))
        try:
            yield link
        finally:
            await link.aclose()


async def redis_remarks(link: AnyLink, settings: Settings, log: LinkLog) -> list[Remark]:
    """Remarks on all of it; where Redis does not answer, that is the only one."""
    try:
        return [await _answer(link, settings), *await inspect(link), *await try_rights(link)]
    except (StoreUnavailableError, ReplyError) as error:
        reason = log.explained(error.reason) if isinstance(error, StoreUnavailableError) else str(error)
        return [Remark("redis", "error", f"{where(settings)}: {reason}.")]


def where(settings: Settings) -> str:
    """Where Redis is, without a user or a password."""
    if settings.redis_url is None:
        return f"the bundled Valkey in {settings.data_dir}"
    return read_redis_url(settings.redis_url.get_secret_value()).where


async def _answer(link: AnyLink, settings: Settings) -> Remark:
    await link.ready()
    took_ms = []
    for _ in range(_PINGS):
        began_s = time.perf_counter()
        await link.ready()
        took_ms.append((time.perf_counter() - began_s) * 1000)
    ping_ms = sorted(took_ms)[_PINGS // 2]
    text = f"{where(settings)} answers in {ping_ms:.2f} ms"
    if ping_ms > settings.store_timeout_ms:
        return Remark("redis", "error", f"{text}: longer than store_timeout_ms.")
    if settings.redis_url is None:  # no URL to be spelled as it is
        text = text[0].upper() + text[1:]
    return Remark("redis", "ok", f"{text}.")
