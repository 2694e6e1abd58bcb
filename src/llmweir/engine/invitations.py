"""Invitations to set a password: a token that is mailed and never kept, only its SHA-256.

An invitation is stamped with what it was made for: this user, at this address, with the password of that time. So it
ends by itself when a password is set, by it or by any other way, when the address changes, or when the user goes. A
failure on the way can end it neither too early nor too late.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets

import msgspec

from llmweir.engine import keys
from llmweir.engine.any_link import AnyLink
from llmweir.engine.users import User, Users
from llmweir.engine.wire import ReplyError
from llmweir.errors import NotFoundError, StoreUnavailableError
from llmweir.record_fields import caseless_email

LIFE_MS = 48 * 3_600_000
_CLAIM_MS = 30_000
_TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


class Invitations:
    """The invitations of one store; each lives for `life_ms`."""

    def __init__(self, link: AnyLink, users: Users, *, life_ms: int = LIFE_MS) -> None:
        self._link = link
        self._users = users
        self._life_ms = life_ms

    async def issue(self, user_id: str) -> str:
        """Makes an invitation and returns its token, 43 characters fit for a URL; raises NotFoundError for no user."""
        stamped = await self._stamped(user_id)
        if stamped is None:
            raise NotFoundError("There is no such user.", param="user_id")
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        stamp = f"{stamped[1]} {user_id}"
        await self._link.call(b"SET", keys.invitation(_hash(token)), stamp, b"PX", self._life_ms)
        return token

    async def guest(self, token: str) -> User | None:
        """The user that a token invites, or None where it is not valid (any more); changes nothing."""
        if not _TOKEN.fullmatch(token):
            return None
        stored = await self._link.call(b"GET", keys.invitation(_hash(token)))
        if not isinstance(stored, bytes):
            return None
        stamp, _, user_id = stored.decode().partition(" ")
        stamped = await self._stamped(user_id)
        return stamped[0] if stamped is not None and stamped[1] == stamp else None

    async def accept(self, token: str, password_hash: str) -> bool:
        """Sets the password of the user that a token invites, and ends the token; False where it is not valid.

        Of several at once, one sets it: the others see the claim that is there meanwhile. Where the store fails
        before the password is set, the token stays valid.
        """
        if not _TOKEN.fullmatch(token):
            return False
        token_hash = _hash(token)
        claim = keys.invitation_claim(token_hash)
        if not await self._link.call(b"SET", claim, b"1", b"NX", b"PX", _CLAIM_MS):
            return False
        try:
            guest = await self.guest(token)
            accepted = guest is not None and await self._users.set_password_hash(guest.record.user_id, password_hash)
        except (StoreUnavailableError, ReplyError):
            await self._tidied(claim)
            raise
        await self._tidied(keys.invitation(token_hash))
        return accepted

    async def _stamped(self, user_id: str) -> tuple[User, str] | None:
        user, password_hash = await asyncio.gather(self._users.get(user_id), self._users.password_hash(user_id))
        if user is None:
            return None
        record = user.record
        made_for = [record.created_at_ms, caseless_email(record.user_email or ""), password_hash]
        return user, hashlib.sha256(msgspec.json.encode(made_for)).hexdigest()[:32]

    async def _tidied(self, key: bytes) -> None:
        """Deletes a key that means nothing any more; where that fails it expires."""
        with contextlib.suppress(StoreUnavailableError, ReplyError):
            await self._link.call(b"DEL", key)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
