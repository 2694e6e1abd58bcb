"""What is asked of a Redis before it is trusted with the books: its version, role, persistence, eviction, clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llmweir.engine.any_link import AnyLink
from llmweir.engine.inspection_rules import Facts, Remark, remarks_of
from llmweir.engine.wall_clock import wall_clock_ms
from llmweir.engine.wire import Reply, ReplyError
from llmweir.errors import StoreUnavailableError

_PARAMETERS = ("save", "appendfsync")


async def inspect(link: AnyLink, *, clock_ms: Callable[[], int] = wall_clock_ms) -> list[Remark]:
    """Remarks on all of it, in one round trip. Raises StoreUnavailableError.

    Commands that Redis refuses (a managed one does, or an ACL) are remarks too: we were not allowed to look.
    """
    if not link.masters:  # a cluster that was not asked yet
        await link.ready()
    of_masters = [remarks_of(await _ask(master, clock_ms)) for master in link.masters]
    return [max(same, key=_gravity) for same in zip(*of_masters, strict=True)]


async def warnings_of(link: AnyLink) -> list[str]:
    """Sentences of what is not as it should be, for the log at the start; one round trip at most, never an error."""
    try:
        remarks = await inspect(link)
    except (StoreUnavailableError, ValueError):  # of the one the link has said so; the other is no Redis
        return []
    return [remark.text for remark in remarks if remark.verdict in {"warning", "error"}]


async def _ask(link: AnyLink, clock_ms: Callable[[], int]) -> Facts:
    began_ms = clock_ms()
    parameters = (link.call(b"CONFIG", b"GET", name) for name in _PARAMETERS)
    told = await asyncio.gather(link.call(b"TIME"), link.call(b"INFO"), *parameters, return_exceptions=True)
    middle_ms = (began_ms + clock_ms()) // 2
    now, info, *config = map(_allowed, told)
    return Facts(
        info=_lines(info) if isinstance(info, bytes) else None,
        config=_parameters(config),
        skew_ms=_time_ms(now) - middle_ms if isinstance(now, list) else None,
    )


def _gravity(remark: Remark) -> int:
    return ("ok", "unknown", "warning", "error").index(remark.verdict)


def _allowed(reply: Reply | BaseException) -> Reply:
    """A reply, or None where Redis refused the command; raises any other error."""
    if isinstance(reply, ReplyError):
        return None
    if isinstance(reply, BaseException):
        raise reply
    return reply


def _lines(info: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, _, value in pairs if value}


def _parameters(replies: list[Reply]) -> dict[str, str] | None:
    """The parameters that were told; some managed servers answer with nothing instead of an error."""
    told = [reply for reply in replies if isinstance(reply, list) and len(reply) == 2]
    return {_text(name): _text(value) for name, value in told} or None


def _time_ms(time_reply: list[Reply]) -> int:
    seconds, micros = (int(_text(part)) for part in time_reply)
    return seconds * 1000 + micros // 1000


def _text(reply: Reply) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)
