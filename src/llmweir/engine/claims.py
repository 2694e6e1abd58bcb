"""Names that must be unique, each claimed in a slot of its own before the record that has it is written.

The record is the truth, a claim only keeps others away from its name. So a writer claims the name, writes the record,
keeps the claim, and then releases the name that the record had before. Wherever it crashes, the claim is either
confirmed by the record, or may be taken over as soon as its writer cannot be at work any more.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeAlias, cast

from llmweir.engine import scripts
from llmweir.engine.any_link import AnyLink

WRITING_MS = 10_000
"""How long a writer may take from its claim to its record; what is not there by then was left by a crash."""

Confirms: TypeAlias = Callable[[str], Awaitable[bool]]
"""Whether the record of this owner has the name, read afresh."""

_CLAIM = re.compile(rb"\d+ \d+ [0-9a-f]+ (.*)", re.DOTALL)


class Claims:
    """The claims of one store; `clock` gives the time in ms instead of the server's clock (for tests)."""

    def __init__(self, link: AnyLink, *, clock: Callable[[], int] | None = None) -> None:
        self._link = link
        self._clock = clock
        self._claim = scripts.load("claim")
        self._keep = scripts.load("keep_claim")
        self._release = scripts.load("release")

    async def owner(self, key: bytes) -> str | None:
        """Who claims a name, or None; whether the name is really theirs is for their record to say."""
        claim = await self._link.call(b"GET", key)
        parts = _CLAIM.fullmatch(claim) if isinstance(claim, bytes) else None
        return parts[1].decode() if parts is not None else None

    async def claim(self, key: bytes, owner: str, confirms: Confirms) -> bool:
        """Claims a name for an owner whose record is about to be written with it; False: another owner has it.

        Another's claim is taken over where its record does not confirm it and its writer cannot be at work any more.
        """
        unconfirmed = b""
        while True:
            reply = await self._link.run(
                self._claim, key, self._now(), owner, secrets.token_hex(8), unconfirmed, WRITING_MS, keys=1
            )
            assert isinstance(reply, list)  # noqa: S101 (the script's header says so)
            if reply[0] == 1:
                return True
            _, unconfirmed, holder, at_work = cast(tuple[int, bytes, bytes, int], reply)
            if at_work or await confirms(holder.decode()):
                return False

    async def keep(self, key: bytes, owner: str) -> bool:
        """Says that the writer of a claim has done its work, well or not; once for each claim.

        False: it took longer than `WRITING_MS`, and somebody took the name over. The record must then give it up.
        """
        return await self._link.run(self._keep, key, owner, keys=1) == 1

    async def release(self, key: bytes, owner: str, confirms: Confirms) -> None:
        """Frees a name of an owner whose record does not have it (any more), unless another writer is giving it back.

        What cannot be released now can be taken over later.
        """
        claim = await self._link.call(b"GET", key)
        parts = _CLAIM.fullmatch(claim) if isinstance(claim, bytes) else None
        if parts is None or parts[1].decode() != owner or await confirms(owner):
            return
        await self._link.run(self._release, key, self._now(), parts[0], WRITING_MS, keys=1)

    async def give_up(self, key: bytes, owner: str, confirms: Confirms) -> None:
        """Takes a claim back after the record was not written."""
        if await self.keep(key, owner):
            await self.release(key, owner, confirms)

    def _now(self) -> int | bytes:
        return self._clock() if self._clock is not None else b""
