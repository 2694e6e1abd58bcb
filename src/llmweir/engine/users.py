"""Users and their API keys in Redis: each write one script call, all or nothing.

An email address and an API key lie in slots of their own on a Redis Cluster, so they are written before the record
that makes them count: a crash in between leaves a claim that points to a user who does not confirm it, and such a
claim is worth nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from functools import lru_cache

import msgspec

from llmweir.durations import Duration, period_end_ms
from llmweir.engine import keys, scripts
from llmweir.engine.flatten import Change, changes_of
from llmweir.engine.link import Link, Reply
from llmweir.errors import ConflictError, NotFoundError
from llmweir.records import NewUser, UserFields, UserRecord, UserUpdate, record_from_stored

_KEY = "key:"
_CLAIM_MS = 10_000


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """An API key as it is kept: never in clear. `token` is its SHA-256 in hex, times in ms, 0 = never expires."""

    token: str
    key_name: str
    key_alias: str | None = None
    created_at_ms: int = 0
    expires_at_ms: int = 0


class MintedKey(msgspec.Struct, frozen=True):
    """A key just made: `secret` is shown once."""

    secret: str
    row: KeyRow


class User(msgspec.Struct, frozen=True):
    """A record and the user's keys."""

    record: UserRecord
    keys: tuple[KeyRow, ...]


@lru_cache(maxsize=4096)
def hash_key(secret: str) -> str:
    """Hashes an API key as the store knows it: SHA-256 in 43 characters, so that a record stays compact."""
    return urlsafe_b64encode(hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest())[:-1].decode()


class Users:
    """The users of one store; `clock` gives the time in ms instead of the server's clock (for tests)."""

    def __init__(self, link: Link, *, memo_ttl_ms: int = 86_400_000, clock: Callable[[], int] | None = None) -> None:
        self._link = link
        self._memo_ttl_ms = memo_ttl_ms
        self._clock = clock
        self._write = scripts.load("write")
        self._read = scripts.load("read")

    async def create(self, body: NewUser, *, password_hash: str | None = None) -> str:
        """Creates a user and returns the id; raises ConflictError where the id or the email is taken."""
        user_id = body.user_id or str(uuid.uuid4())
        if body.user_email is not None:
            await self._claim_email(body.user_email, user_id)
        if not await self._written(user_id, "new", [*changes_of(body), *_password(body, password_hash)]):
            raise ConflictError("There is a user with this id already.", param="user_id")
        if body.user_email is not None:
            await self._keep_email(body.user_email, user_id, None)
        return user_id

    async def update(self, body: UserUpdate, *, password_hash: str | None = None) -> str:
        """Changes the fields that were sent, all or none, and returns the id.

        Raises NotFoundError for an unknown user and ConflictError where the new email is taken.
        """
        before = (await self.find(body)).record
        user_id = before.user_id
        if body.user_id is not None and body.user_email is not None:
            await self._claim_email(body.user_email, user_id)
        changes: list[Change] = [*changes_of(body), *_password(body, password_hash), ("unset", "df", "")]
        if body.joins_team is not None:
            changes.append(("join", "teams", msgspec.json.encode(body.joins_team).decode()))
        if not await self._written(user_id, "old", changes):
            raise NotFoundError("There is no such user.", param="user_id")
        if body.user_id is not None and body.user_email is not None:
            await self._keep_email(body.user_email, user_id, before.user_email)
        return user_id

    async def find(self, body: UserUpdate) -> User:
        """The user that an update means, by id or by email; raises NotFoundError."""
        user_id = body.user_id
        if user_id is None and body.user_email is not None:
            user_id = await self.id_of_email(body.user_email)
        user = await self.get(user_id) if user_id is not None else None
        if user is None:
            raise NotFoundError("There is no such user.", param="user_id" if body.user_id else "user_email")
        return user

    async def put_default(self, body: NewUser, user_id: str, digest: str) -> None:
        """Writes a record of the default user's limits for an id nobody gave limits of its own.

        `digest` marks the record, so that it can be told from one an admin wrote, and renewed when the limits change.
        """
        named = body.model_copy(update={"user_id": user_id})
        mark: Change = ("set", "df", digest)
        if not await self._written(user_id, "new", [*changes_of(named), mark]):
            cleared = NewUser.model_construct(set(NewUser.model_fields) - {"user_id", "spend"})
            await self._written(user_id, "default", [*changes_of(cleared), *changes_of(named), mark])

    async def get(self, user_id: str) -> User | None:
        """Reads a user with the account as it stands now, or None."""
        user = keys.user_keys(user_id)
        reply = await self._link.run(
            self._read, user.record, user.doc, user.use, self._now(), self._memo_ttl_ms, keys=3
        )
        if reply is None:
            return None
        assert isinstance(reply, list)  # noqa: S101 (the script's header says so)
        doc, use, record = (_fields(part) for part in reply)
        return User(_record(user_id, doc, use), tuple(_key_rows(doc, record)))

    async def id_of_email(self, address: str) -> str | None:
        """The id of the user with this email address, whatever its case, or None."""
        owner = await self._link.call(b"GET", keys.email(address))
        if not isinstance(owner, bytes):
            return None
        user = await self.get(owner.decode())
        confirmed = user is not None and (user.record.user_email or "").casefold() == address.casefold()
        return owner.decode() if confirmed else None

    async def mint_key(
        self, user_id: str, *, secret: str | None = None, alias: str | None = None, life: Duration | None = None
    ) -> MintedKey:
        """Makes an API key for a user; raises ConflictError where this very key exists, NotFoundError for no user."""
        secret = secret or f"sk-{secrets.token_urlsafe(24)}"
        key_hash = hash_key(secret)
        now_ms = self._now_ms()
        row = KeyRow(
            token=hashlib.sha256(secret.encode()).hexdigest(),
            key_name=f"sk-...{secret[-4:]}",
            key_alias=alias,
            created_at_ms=now_ms,
            expires_at_ms=period_end_ms(life, now_ms, now_ms) if life is not None else 0,
        )
        if not await self._link.call(b"SET", keys.api_key(key_hash), user_id, b"NX"):
            raise ConflictError("There is such a key already.", param="key")
        if not await self._written(user_id, "old", _key_changes(key_hash, row)):
            await self._link.call(b"DEL", keys.api_key(key_hash))
            raise NotFoundError("There is no such user.", param="user_id")
        return MintedKey(secret, row)

    async def change_key(
        self, user_id: str, row: KeyRow, *, alias: str | None = None, life: Duration | None = None
    ) -> KeyRow:
        """Changes the alias of a key, or how long it lives from now on; None leaves it."""
        now_ms = self._now_ms()
        expires_at_ms = row.expires_at_ms if life is None else period_end_ms(life, now_ms, now_ms)
        changed = msgspec.structs.replace(row, key_alias=alias or row.key_alias, expires_at_ms=expires_at_ms)
        key_hash = urlsafe_b64encode(bytes.fromhex(row.token))[:-1].decode()
        await self._written(user_id, "old", _key_changes(key_hash, changed))
        return changed

    async def _written(self, user_id: str, mode: str, changes: list[Change]) -> bool:
        user = keys.user_keys(user_id)
        flat = [part for change in changes for part in change]
        reply = await self._link.run(
            self._write, user.record, user.doc, user.use, self._now(), mode, self._memo_ttl_ms, *flat, keys=3
        )
        assert isinstance(reply, list)  # noqa: S101
        return reply[0] == 1

    async def _claim_email(self, address: str, user_id: str) -> None:
        """Claims an address for as long as writing a record takes; `_keep_email` makes it last.

        A claim that lasts although its user does not have the address (any more) is left from a crash, and may be
        taken over; one that is being written may not.
        """
        key = keys.email(address)
        if await self._link.call(b"SET", key, user_id, b"NX", b"PX", _CLAIM_MS):
            return
        owner, left_ms = await asyncio.gather(self._link.call(b"GET", key), self._link.call(b"PTTL", key))
        if owner == user_id.encode():
            return
        if left_ms != -1 or await self.id_of_email(address) is not None:
            raise ConflictError("A user with this email address exists already.", param="user_email")
        await self._link.call(b"SET", key, user_id, b"PX", _CLAIM_MS)

    async def _keep_email(self, address: str, user_id: str, before: str | None) -> None:
        await self._link.call(b"SET", keys.email(address), user_id)
        if before is not None and before.casefold() != address.casefold():
            await self._link.call(b"DEL", keys.email(before))

    def _now_ms(self) -> int:
        return self._clock() if self._clock is not None else int(time.time() * 1000)

    def _now(self) -> int | bytes:
        return self._clock() if self._clock is not None else b""


def _key_changes(key_hash: str, row: KeyRow) -> list[Change]:
    return [
        ("set", f"k:{key_hash}", f"{row.expires_at_ms} 0"),
        ("doc", _KEY + key_hash, msgspec.json.encode(row).decode()),
    ]


def _password(body: UserFields, password_hash: str | None) -> list[Change]:
    if password_hash is not None:
        return [("doc", "password_hash", password_hash)]
    return [("undoc", "password_hash", "")] if "password" in body.model_fields_set else []


def _fields(flat: Reply) -> dict[str, str]:
    assert isinstance(flat, list)  # noqa: S101
    texts = [part.decode() if isinstance(part, bytes) else str(part) for part in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _record(user_id: str, doc: dict[str, str], use: dict[str, str]) -> UserRecord:
    document = {name: text for name, text in doc.items() if not name.startswith(_KEY) and name not in _NOT_JSON_FIELDS}
    return record_from_stored(
        user_id,
        document,
        created_at_ms=int(doc["created_at_ms"]),
        updated_at_ms=int(doc["updated_at_ms"]),
        spend_nanos=int(use.get("s", 0)),
        reserved_nanos=int(use.get("h", 0)),
        model_spend_nanos={field[2:]: int(nanos) for field, nanos in use.items() if field.startswith("s:")},
        budget_reset_at_ms=int(use["e"]) if "e" in use else None,
        has_password="password_hash" in doc,
    )


_NOT_JSON_FIELDS = frozenset({"created_at_ms", "updated_at_ms", "password_hash"})


def _key_rows(doc: dict[str, str], record: dict[str, str]) -> list[KeyRow]:
    rows = [
        msgspec.json.decode(text, type=KeyRow)
        for name, text in doc.items()
        if name.startswith(_KEY) and f"k:{name.removeprefix(_KEY)}" in record
    ]
    return sorted(rows, key=lambda row: row.created_at_ms)
