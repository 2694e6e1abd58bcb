"""The API keys of a store's users: made, found, changed, made anew, deleted and listed.

A key lies in its user's record, which is the truth; `lw:key:HASH` says whose it is and is written before, so that a
crash in between leaves a key that its user does not know, and that is worth nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from llmweir.engine import keys
from llmweir.engine.flatten import Change
from llmweir.engine.key_directory import KeyDirectory, KeyEntry, KeyQuery
from llmweir.engine.key_hashes import hash_key, hash_of_token, token_of_key
from llmweir.engine.key_rows import dropped_key_changes, key_changes, moved_key_changes, new_key_changes
from llmweir.engine.users import User, Users
from llmweir.errors import ConflictError, NotFoundError
from llmweir.key_records import KeyFields, KeyRecord, NewKey, changed_key

_TOKEN_DIGITS = 64


class MintedKey(msgspec.Struct, frozen=True):
    """A key just made: `secret` is shown once."""

    secret: str
    record: KeyRecord


class KeyPage(msgspec.Struct, frozen=True):
    """One page of a list, and how many there are in all."""

    records: tuple[KeyRecord, ...]
    total: int


class ApiKeys:
    """The API keys of `users`."""

    def __init__(self, users: Users) -> None:
        self._users = users
        self._data = users.data
        self._link = users.data.link
        self._directory = KeyDirectory(users.data.link, self._entries, clock=users.data.clock)

    async def mint(self, user_id: str, body: NewKey) -> MintedKey:
        """Makes a key for a user, up to all that `body` says of it; made up where it names none itself.

        Raises NotFoundError for an unknown user, ConflictError where there is such a key or such an alias.
        """
        secret = body.key.get_secret_value() if body.key is not None else _new_secret()
        now_ms = self._data.now_ms()
        blank = KeyRecord(token=token_of_key(secret), user_id=user_id, key_name=_key_name(secret), created_at_ms=now_ms)
        record = changed_key(blank, body, now_ms)
        if await self._users.get(user_id) is None:
            raise _no_user()
        if not await self._write(record, new_key_changes(record), new_alias=record.key_alias, is_new=True):
            raise _no_user()
        return MintedKey(secret, await self.find(record.token))

    async def find(self, name: str) -> KeyRecord:
        """The key that a text names: the key itself in clear, or its SHA-256 in hex. Raises NotFoundError."""
        is_token = len(name) == _TOKEN_DIGITS and all(digit in "0123456789abcdef" for digit in name)
        record = await self._by_hash(hash_of_token(name) if is_token else hash_key(name))
        if record is None:
            raise _no_key("key")
        return record

    async def find_alias(self, alias: str) -> KeyRecord:
        """The key with this alias; raises NotFoundError."""
        owner = await self._users.claims.owner(keys.alias(alias))
        record = await self._with_alias(owner, alias) if owner is not None else None
        if record is None:
            raise _no_key("key_alias")
        return record

    async def holder(self, secret: str) -> tuple[User, KeyRecord] | None:
        """The user who presents a key, and the key, read afresh; whether it is valid is for the caller to look at."""
        key_hash = hash_key(secret)
        owner = await self._link.call(b"GET", keys.api_key(key_hash))
        user = await self._users.get(owner.decode()) if isinstance(owner, bytes) else None
        if user is None:
            return None
        token = token_of_key(secret)
        return next(((user, record) for record in user.keys if record.token == token), None)

    async def update(self, record: KeyRecord, body: KeyFields) -> KeyRecord:
        """Changes the fields that were sent; raises ConflictError for an alias that is taken, NotFoundError."""
        while True:
            changed = changed_key(record, body, self._data.now_ms())
            new_alias = changed.key_alias if changed.key_alias != record.key_alias else None
            changes = key_changes(changed, record, sets_spend=body.spend_nanos is not None)
            if await self._write(changed, changes, new_alias=new_alias):
                break
            record = await self.find(record.token)  # somebody else has changed it in between
        if record.key_alias not in (None, changed.key_alias):
            await self._let_go(record)
        return await self.find(record.token)

    async def set_blocked(self, record: KeyRecord, blocked: bool) -> KeyRecord:
        """Blocks a key, or lets it in again, from the next request on; raises NotFoundError."""
        while True:
            changed = msgspec.structs.replace(record, blocked=blocked)
            if await self._data.write(record.user_id, "old", key_changes(changed, record, sets_spend=False)):
                return changed
            record = await self.find(record.token)

    async def regenerate(self, record: KeyRecord, *, secret: str | None = None) -> MintedKey:
        """Puts a key under a new secret; the old one is dead at once.

        Raises ConflictError where there is such a key, NotFoundError.
        """
        secret = secret or _new_secret()
        while True:
            moved = msgspec.structs.replace(record, token=token_of_key(secret), key_name=_key_name(secret))
            if await self._write(moved, moved_key_changes(moved, record), is_new=True):
                break
            record = await self.find(record.token)
        await self._forget(record)
        return MintedKey(secret, moved)

    async def delete(self, records: Sequence[KeyRecord]) -> None:
        """Deletes keys; what they have spent stays with their users. Raises NotFoundError where one is gone already."""
        written = [await self._data.write(record.user_id, "old", dropped_key_changes(record)) for record in records]
        await self.forget(records)
        if not all(written):
            raise _no_key("keys")

    async def forget(self, records: Sequence[KeyRecord]) -> None:
        """Cleans up what lies of deleted keys outside of their users' data: whose they are, their aliases, the list."""
        await asyncio.gather(*map(self._forget, records))
        await asyncio.gather(*(self._let_go(record) for record in records))

    async def file_again(self, key_hashes: Sequence[str]) -> None:
        """Files keys in the directory as their users' records are, for what it has lost or never had."""
        await self._directory.file_again(key_hashes)

    async def page(self, query: KeyQuery) -> KeyPage:
        """Reads a page of the keys that a query finds, the newest first, and how many it finds in all."""
        if query.user_id is not None or query.key_alias is not None:
            records = await self._few(query)
            start = (query.page - 1) * query.size
            return KeyPage(tuple(records[start : start + query.size]), len(records))
        places, total = await self._directory.key_hashes(query)
        found = await self._by_hashes([key_hash for key_hash, _ in places])
        return KeyPage(tuple(record for record in found if record is not None), total)

    async def _few(self, query: KeyQuery) -> list[KeyRecord]:
        """The keys of one user, or with one alias."""
        if query.user_id is not None:
            user = await self._users.get(query.user_id)
            records = [*reversed(user.keys)] if user is not None else []
        else:
            try:
                records = [await self.find_alias(query.key_alias or "")]
            except NotFoundError:
                records = []
        return [
            record
            for record in records
            if query.key_alias in (None, record.key_alias) and query.team_id in (None, record.team_id)
        ]

    async def _write(
        self, record: KeyRecord, changes: Sequence[Change], *, new_alias: str | None = None, is_new: bool = False
    ) -> bool:
        """Writes changes of a key, and around them what lies elsewhere: its alias, whose it is, its place in lists."""
        key_hash, alias = hash_of_token(record.token), new_alias or ""
        owner, has_alias = f"{record.user_id}\n{record.token}", self._has_alias(alias)
        if new_alias is not None and not await self._users.claims.claim(keys.alias(alias), owner, has_alias):
            raise _alias_taken()
        if is_new and not await self._reserve(record):
            if new_alias is not None:
                await self._users.claims.give_up(keys.alias(alias), owner, has_alias)
            raise _key_taken()
        async with self._directory.writing(key_hash):
            written = await self._data.write(record.user_id, "old", changes)
            if new_alias is not None and not written:
                await self._users.claims.give_up(keys.alias(alias), owner, has_alias)
            elif new_alias is not None and not await self._users.claims.keep(keys.alias(alias), owner):
                nameless = msgspec.structs.replace(record, key_alias=None)
                await self._data.write(record.user_id, "old", key_changes(nameless, record, sets_spend=False))
                raise _alias_taken()
            if is_new and not written:
                if await self._by_hash(key_hash) is not None:  # another call has made the very same one
                    raise _key_taken()
                await self._link.call(b"DEL", keys.api_key(key_hash))
        return written

    async def _reserve(self, record: KeyRecord) -> bool:
        """Writes whose a new key is; False where there is such a key. What a crash left of this user is taken up."""
        key_hash = hash_of_token(record.token)
        if await self._link.call(b"SET", keys.api_key(key_hash), record.user_id, b"NX"):
            return True
        owner = await self._link.call(b"GET", keys.api_key(key_hash))
        return owner == record.user_id.encode() and await self._by_hash(key_hash) is None

    async def _forget(self, record: KeyRecord) -> None:
        key_hash = hash_of_token(record.token)
        async with self._directory.writing(key_hash):
            await self._link.call(b"DEL", keys.api_key(key_hash))

    async def _let_go(self, record: KeyRecord) -> None:
        """Gives up the alias of a key that has it no more; whoever claimed it may have had another secret."""
        if record.key_alias is None:
            return
        owner = await self._users.claims.owner(keys.alias(record.key_alias))
        if owner is not None and owner.partition("\n")[0] == record.user_id:
            await self._users.claims.release(keys.alias(record.key_alias), owner, self._has_alias(record.key_alias))

    async def _by_hash(self, key_hash: str) -> KeyRecord | None:
        return (await self._by_hashes([key_hash]))[0]

    async def _by_hashes(self, key_hashes: Sequence[str]) -> list[KeyRecord | None]:
        """The keys of some hashes, in their order, as their users' records have them."""
        owners = await asyncio.gather(*(self._link.call(b"GET", keys.api_key(key_hash)) for key_hash in key_hashes))
        user_ids = [owner.decode() if isinstance(owner, bytes) else "" for owner in owners]
        known = list(dict.fromkeys(user_id for user_id in user_ids if user_id))
        users = dict(zip(known, await self._users.get_many(known), strict=True))
        return [_of_hash(users.get(user_id), key_hash) for user_id, key_hash in zip(user_ids, key_hashes, strict=True)]

    async def _entries(self, key_hashes: Sequence[str]) -> list[KeyEntry | None]:
        return [_entry(record) for record in await self._by_hashes(key_hashes)]

    def _has_alias(self, alias: str) -> Callable[[str], Awaitable[bool]]:
        """Whether the user of an owner has a key with an alias, read afresh.

        An owner is a user's id and a key's token: two keys of one user are two owners. Which of the user's keys it is
        does not matter then: under a new secret a key keeps its alias.
        """

        async def has_alias(owner: str) -> bool:
            return await self._with_alias(owner, alias) is not None

        return has_alias

    async def _with_alias(self, owner: str, alias: str) -> KeyRecord | None:
        user = await self._users.get(owner.partition("\n")[0])
        return next((key for key in user.keys if key.key_alias == alias), None) if user is not None else None


def _of_hash(user: User | None, key_hash: str) -> KeyRecord | None:
    keys_of_user = user.keys if user is not None else ()
    return next((record for record in keys_of_user if hash_of_token(record.token) == key_hash), None)


def _entry(record: KeyRecord | None) -> KeyEntry | None:
    if record is None:
        return None
    return KeyEntry(
        key_hash=hash_of_token(record.token),
        user_id=record.user_id,
        team_id=record.team_id,
        created_at_ms=record.created_at_ms,
    )


def _new_secret() -> str:
    return f"sk-{secrets.token_urlsafe(24)}"


def _key_name(secret: str) -> str:
    return f"sk-...{secret[-4:]}"


def _key_taken() -> ConflictError:
    return ConflictError("There is such a key already.", param="key")


def _alias_taken() -> ConflictError:
    return ConflictError("A key with this alias exists already.", param="key_alias")


def _no_user() -> NotFoundError:
    return NotFoundError("There is no such user.", param="user_id")


def _no_key(param: str) -> NotFoundError:
    return NotFoundError("There is no such key.", param=param)
