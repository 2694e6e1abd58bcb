"""The users of a store: their records, made, changed, listed, read and deleted.

A record is the truth, and each of its changes is one script call. What must be unique (emails) or is listed (the
directory) lies in slots of its own on a Redis Cluster, so it is written before the record that makes it count, and
cleaned up after: a crash in between leaves a claim or a place that no record confirms, and whoever meets it mends it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext

import msgspec

from llmweir.engine import keys
from llmweir.engine.any_link import AnyLink
from llmweir.engine.claims import Claims
from llmweir.engine.directory import Directory, UserEntry, UserQuery
from llmweir.engine.flatten import Change, changes_of
from llmweir.engine.key_rows import account_of, key_records
from llmweir.engine.limit_usage import LimitUsage, usage_of
from llmweir.engine.user_data import AccountState, DayRow, Stored, UserData
from llmweir.errors import ConflictError, NotFoundError
from llmweir.key_records import KeyRecord
from llmweir.record_fields import caseless_email
from llmweir.records import STORED_FIELDS, NewUser, UserFields, UserRecord, UserUpdate, record_from_stored

_FILED = frozenset({"user_email", "user_alias", "user_role", "teams", "team_id"})


class User(msgspec.Struct, frozen=True):
    """A record and the user's keys, oldest first."""

    record: UserRecord
    keys: tuple[KeyRecord, ...]


class UserPage(msgspec.Struct, frozen=True):
    """One page of a list, and how many there are in all."""

    users: tuple[User, ...]
    total: int


class Users:
    """The users of one store; `clock` gives the time in ms instead of the server's clock (for tests)."""

    def __init__(self, link: AnyLink, *, memo_ttl_ms: int = 86_400_000, clock: Callable[[], int] | None = None) -> None:
        self.data = UserData(link, memo_ttl_ms=memo_ttl_ms, clock=clock)
        self.claims = Claims(link, clock=clock)
        self.directory = Directory(link, self._entries, self._spends, clock=clock)

    async def create(self, body: NewUser, *, password_hash: str | None = None) -> str:
        """Creates a user and returns the id; raises ConflictError where the id or the email is taken."""
        user_id = body.user_id or str(uuid.uuid4())
        changes = [*changes_of(body), *_password(body, password_hash)]
        if not await self._write(user_id, "new", changes, email=body.user_email, is_filed=True):
            raise ConflictError("There is a user with this id already.", param="user_id")
        return user_id

    async def update(self, body: UserUpdate, *, password_hash: str | None = None) -> str:
        """Changes the fields that were sent, all or none, and returns the id.

        Raises NotFoundError for an unknown user and ConflictError where the new email is taken.
        """
        before = (await self.find(body)).record
        changes: list[Change] = [*changes_of(body), *_password(body, password_hash), ("unset", "df", "")]
        if body.joins_team is not None:
            changes.append(("join", "teams", msgspec.json.encode(body.joins_team).decode()))
        sent = body.model_fields_set
        renamed = body.user_id is not None and "user_email" in sent
        new_email = body.user_email if renamed and body.user_email != before.user_email else None
        if not await self._write(before.user_id, "old", changes, email=new_email, is_filed=bool(sent & _FILED)):
            raise _unknown("user_id")
        if renamed and before.user_email is not None:
            await self._let_go(before.user_email, before.user_id)
        return before.user_id

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
        async with self.directory.writing(user_id):
            if not await self.data.write(user_id, "new", [*changes_of(named), mark]):
                cleared = NewUser.model_construct(set(NewUser.model_fields) - {"user_id", "spend"})
                await self.data.write(user_id, "default", [*changes_of(cleared), *changes_of(named), mark])

    async def get(self, user_id: str) -> User | None:
        """Reads a user with the account as it stands now, or None."""
        stored = await self.data.read(user_id)
        return None if stored is None else _user(stored)

    async def get_many(self, user_ids: Sequence[str]) -> list[User | None]:
        """Reads several users, in the order asked for."""
        return await asyncio.gather(*map(self.get, user_ids))

    async def page(self, query: UserQuery) -> UserPage:
        """Reads a page of the users that a query finds, and how many it finds in all."""
        user_ids, total = await self.directory.user_ids(query)
        users = await self.get_many(user_ids)
        return UserPage(tuple(user for user in users if user is not None), total)

    async def id_of_email(self, address: str) -> str | None:
        """The id of the user with this email address, whatever its case, or None."""
        owner = await self.claims.owner(keys.email(address))
        return owner if owner is not None and await self._has_email(address)(owner) else None

    async def delete(self, user_ids: Sequence[str]) -> None:
        """Deletes users with their keys; what they used stays in the reports. Raises NotFoundError: then none is.

        What lies of the keys outside of the users' own data is for `ApiKeys.forget` to clean up.
        """
        for user in await self._all_known(user_ids):
            await self._delete(user)

    async def set_blocked(self, user_ids: Sequence[str], blocked: bool) -> None:
        """Blocks users, or lets them in again, from the next request on. Raises NotFoundError: then none is."""
        users = await self._all_known(user_ids)
        changes: list[Change] = [("set", "bl", 1), ("doc", "blocked", "true")]
        if not blocked:
            changes = [("unset", "bl", ""), ("undoc", "blocked", "")]
        await asyncio.gather(*(self.data.write(user.record.user_id, "old", changes) for user in users))

    async def join_team(self, user_ids: Sequence[str], team_id: str) -> None:
        """Adds a team to the teams of users. Raises NotFoundError: then nobody joins."""
        await self._change_teams(user_ids, "join", team_id)

    async def leave_team(self, user_ids: Sequence[str], team_id: str) -> None:
        """Takes a team from the teams of users. Raises NotFoundError: then nobody leaves."""
        await self._change_teams(user_ids, "leave", team_id)

    async def password_hash(self, user_id: str) -> str | None:
        """The argon2 hash of a user's password, None where there is no password or no user."""
        stored = await self.data.read(user_id)
        return None if stored is None else stored.doc.get("password_hash")

    async def set_password_hash(self, user_id: str, password_hash: str) -> bool:
        """Sets a password; False where there is no such user."""
        return await self.data.write(user_id, "old", [("doc", "password_hash", password_hash)])

    async def usage(self, user_id: str) -> list[LimitUsage]:
        """Where every limit of a user stands; reading it counts nothing. Raises NotFoundError."""
        stored = await self.data.read(user_id)
        if stored is None:
            raise _unknown("user_id")
        user = _user(stored)
        named = [(account_of(stored, key), key) for key in user.keys]
        return usage_of(user.record, named, stored.accounts, self.data.now_ms())

    async def days(self, user_id: str, first_day: int, last_day: int) -> list[DayRow]:
        """What a user has used on some UTC days (their numbers since 1970-01-01), oldest first; deleted users too."""
        return await self.data.days(user_id, first_day, last_day)

    async def _write(
        self, user_id: str, mode: str, changes: Sequence[Change], *, email: str | None, is_filed: bool
    ) -> bool:
        """Writes changes of a record, a claim to a new `email` and the record's place in the directory around them."""
        if email is not None and not await self.claims.claim(keys.email(email), user_id, self._has_email(email)):
            raise _email_taken()
        async with self.directory.writing(user_id) if is_filed else nullcontext():
            written = await self.data.write(user_id, mode, changes)
            if email is not None and not written:
                await self.claims.give_up(keys.email(email), user_id, self._has_email(email))
            elif email is not None and not await self.claims.keep(keys.email(email), user_id):
                await self.data.write(user_id, "old", [("undoc", "user_email", "")])
                raise _email_taken()
        return written

    async def _change_teams(self, user_ids: Sequence[str], what: str, team_id: str) -> None:
        item = msgspec.json.encode(team_id).decode()
        for user in await self._all_known(user_ids):
            await self._write(user.record.user_id, "old", [(what, "teams", item)], email=None, is_filed=True)

    async def _delete(self, user: User) -> None:
        record = user.record
        async with self.directory.writing(record.user_id):
            await self.data.delete(record.user_id)
        if record.user_email is not None:
            await self._let_go(record.user_email, record.user_id)

    async def _all_known(self, user_ids: Sequence[str]) -> list[User]:
        users = await self.get_many(list(dict.fromkeys(user_ids)))
        known = [user for user in users if user is not None]
        if len(known) < len(users):
            raise _unknown("user_ids")
        return known

    async def _entries(self, user_ids: Sequence[str]) -> list[UserEntry | None]:
        found = await self.data.texts(user_ids, ("user_email", "user_alias", "user_role", "teams"))
        return [None if one is None else _entry(user_id, *one) for user_id, one in zip(user_ids, found, strict=True)]

    async def _spends(self, user_ids: Sequence[str]) -> list[int]:
        return await self.data.spends(user_ids)

    async def _let_go(self, address: str, user_id: str) -> None:
        """Gives up a user's claim to an address, unless the record has it."""
        await self.claims.release(keys.email(address), user_id, self._has_email(address))

    def _has_email(self, address: str) -> Callable[[str], Awaitable[bool]]:
        """Whether the record of a user has an address, read afresh; its case does not matter."""

        async def has_email(user_id: str) -> bool:
            user = await self.get(user_id)
            return user is not None and caseless_email(user.record.user_email or "") == caseless_email(address)

        return has_email


def _entry(user_id: str, created_at_ms: str | None, *texts: str | None) -> UserEntry:
    email, alias, role, teams = (msgspec.json.decode(text) if text is not None else None for text in texts)
    return UserEntry(
        user_id=user_id,
        email=email,
        alias=alias,
        role=role or "internal_user",
        teams=tuple(teams or ()),
        created_at_ms=int(created_at_ms or 0),
    )


def _password(body: UserFields, password_hash: str | None) -> list[Change]:
    if password_hash is not None:
        return [("doc", "password_hash", password_hash)]
    return [("undoc", "password_hash", "")] if "password" in body.model_fields_set else []


def _user(stored: Stored) -> User:
    doc, own = stored.doc, stored.accounts.get("u", AccountState())
    spends = {name[2:]: int(nanos) for name, nanos in stored.use.items() if name.startswith("s:")}
    document = {name: doc[name] for name in STORED_FIELDS if name in doc}
    record = record_from_stored(
        stored.user_id,
        document,
        created_at_ms=int(doc["created_at_ms"]),
        updated_at_ms=int(doc["updated_at_ms"]),
        spend_nanos=own.spent_nanos,
        reserved_nanos=own.held_nanos,
        model_spend_nanos={model: nanos for model, nanos in spends.items() if nanos},
        budget_reset_at_ms=own.ends_at_ms,
        has_password="password_hash" in doc,
    )
    return User(record, key_records(stored))


def _email_taken() -> ConflictError:
    return ConflictError("A user with this email address exists already.", param="user_email")


def _unknown(param: str) -> NotFoundError:
    return NotFoundError("There is no such user.", param=param)
