"""The ways through all users of a store: those that the directory lists, and those that it should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast
from urllib.parse import unquote_to_bytes

from llmweir.engine import keys
from llmweir.engine.any_link import AnyLink
from llmweir.engine.catalogue import CHUNK


async def user_count(link: AnyLink) -> int:
    """How many users the directory lists."""
    return cast(int, await link.call(b"ZCARD", _by_id()))


async def listed_ids(link: AnyLink) -> AsyncIterator[str]:
    """All users of the directory, in the order of their ids; whoever comes or goes meanwhile moves nobody else."""
    place, after = _by_id(), b"-"
    while members := cast(list[bytes], await link.call(b"ZRANGEBYLEX", place, after, b"+", b"LIMIT", 0, CHUNK)):
        for member in members:
            yield member.partition(b"\0")[2].decode()
        after = b"(" + members[-1]


async def walked_ids(link: AnyLink) -> AsyncIterator[str]:
    """All users with a record whom the directory does not list."""
    place, seen = _by_id(), set[str]()
    async for chunk in scan(link, b"*}".join(_around_id())):
        found = [user_id for key in chunk if (user_id := _id_of(key)) is not None and user_id not in seen]
        scores = await asyncio.gather(*(link.call(b"ZSCORE", place, b"\0" + one.encode()) for one in found))
        for user_id, score in zip(found, scores, strict=True):
            if score is None and user_id not in seen:
                seen.add(user_id)
                yield user_id


async def scan(link: AnyLink, pattern: bytes) -> AsyncIterator[list[bytes]]:
    """All keys of Redis that match, a part after the other; one may come twice."""
    await link.ready()
    for master in link.masters:
        cursor = b""
        while cursor != b"0":
            reply = await master.call(b"SCAN", cursor or b"0", b"MATCH", pattern, b"COUNT", CHUNK)
            cursor, found = cast(tuple[bytes, list[bytes]], reply)
            if found:
                yield found


def _by_id() -> bytes:
    return keys.catalogue("users").place(keys.text_place("id"))


def _around_id() -> tuple[bytes, bytes]:
    """What stands before the id in a record's key, and behind the brace that ends it."""
    start, _, end = keys.user_keys("").record.partition(b"}")
    return start, end


def _id_of(key: bytes) -> str | None:
    """The user a record belongs to; None for the key of something else that looks like one."""
    start, end = _around_id()
    quoted = key.removeprefix(start).removesuffix(b"}" + end)
    if b"}" in quoted:
        return None
    user_id = unquote_to_bytes(quoted).decode(errors="replace")
    return user_id if keys.user_keys(user_id).record == key else None
