"""What an import is to do, decided before anything is written: users, keys, and what stays behind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from llmweir.cli.importing_rows import Draft, Note, key_draft, user_draft

_ORPHAN = "A key without a user; here each key has one, so it gets one of its own."
_OF_NOBODY = "The user of the key is not in the proxy's list; it is made with nothing but its id."


class UserTask(msgspec.Struct, frozen=True):
    """A user to be made; or to be changed, or left as it is, where it `is_there` already."""

    user_id: str
    body: dict[str, Any]
    is_there: bool


class KeyTask(msgspec.Struct, frozen=True):
    """A key to be made: `old_token` is the SHA-256 of the old one, `secret` the old one itself where it is in clear."""

    old_token: str
    key_name: str
    body: dict[str, Any]
    secret: str | None

    @property
    def label(self) -> str:
        """What people know the key by."""
        return str(self.body.get("key_alias") or self.key_name or self.old_token[:12])


class Remark(msgspec.Struct, frozen=True):
    """A note on one user or key."""

    kind: str
    name: str
    note: Note


class Plan(msgspec.Struct, frozen=True):
    """What an import is to do; `left_out` are users and keys that cannot be carried over at all."""

    users: tuple[UserTask, ...]
    keys: tuple[KeyTask, ...]
    remarks: tuple[Remark, ...]
    left_out: tuple[Remark, ...]

    @property
    def new_users(self) -> int:
        """How many users are not there yet."""
        return sum(not task.is_there for task in self.users)


class There(msgspec.Struct, frozen=True):
    """Who is in llmweir already: ids, and the ids by email in lower case."""

    user_ids: frozenset[str] = frozenset()
    owners: Mapping[str, str] = {}


def plan_of(
    user_rows: Iterable[Mapping[str, Any]], key_rows: Iterable[Mapping[str, Any]], there: There, now: datetime
) -> Plan:
    """Decides what is to be done with the rows of a proxy."""
    planner = _Planner(there)
    for row in user_rows:
        planner.add_user(str(row.get("user_id", "")), user_draft(row))
    for row in key_rows:
        planner.add_key(row, key_draft(row, now))
    return planner.plan()


class _Planner:
    def __init__(self, there: There) -> None:
        self._there = there
        self._owners = dict(there.owners)
        self._aliases: set[str] = set()
        self._users: dict[str, UserTask] = {}
        self._keys: list[KeyTask] = []
        self._remarks: list[Remark] = []
        self._left_out: list[Remark] = []

    def plan(self) -> Plan:
        return Plan(tuple(self._users.values()), tuple(self._keys), tuple(self._remarks), tuple(self._left_out))

    def add_user(self, user_id: str, draft: Draft) -> None:
        if draft.body is None:
            self._leave_out("user", user_id, draft)
            return
        body = dict(draft.body)
        email = str(body.get("user_email", "")).lower()
        if email and self._owners.setdefault(email, user_id) != user_id:
            del body["user_email"]
            self._remark("user", user_id, Note("user_email", "Another user has this address already."))
        self._make(user_id, body)
        for note in draft.notes:
            self._remark("user", user_id, note)

    def add_key(self, row: Mapping[str, Any], draft: Draft) -> None:
        token = str(row["token"])
        secret = token if token.startswith("sk-") else None
        old_token = hashlib.sha256(token.encode()).hexdigest() if secret else token
        name = str(row.get("key_name") or old_token[:12])
        if draft.body is None:
            self._leave_out("key", str(row.get("key_alias") or name), draft)
            return
        task = KeyTask(old_token, name, {**draft.body, "user_id": self._owner(old_token, row, draft.body)}, secret)
        self._without_double_alias(task)
        self._keys.append(task)
        for note in draft.notes:
            self._remark("key", task.label, note)

    def _owner(self, old_token: str, row: Mapping[str, Any], body: Mapping[str, Any]) -> str:
        user_id = str(body.get("user_id") or f"litellm-key-{old_token[:16]}")
        if user_id not in self._users:
            is_known = "user_id" in body
            name = str(row.get("key_alias") or row.get("key_name") or old_token[:12])
            self._make(user_id, {} if is_known else {"user_alias": name[:256]})
            self._remark("key", name, Note("user_id", _OF_NOBODY if is_known else _ORPHAN))
        return user_id

    def _without_double_alias(self, task: KeyTask) -> None:
        alias = task.body.get("key_alias")
        if alias is None:
            return
        if alias in self._aliases:
            del task.body["key_alias"]
            self._remark("key", task.label, Note("key_alias", "Another key has this alias already."))
        self._aliases.add(alias)

    def _make(self, user_id: str, body: dict[str, Any]) -> None:
        is_there = user_id in self._there.user_ids
        self._users[user_id] = UserTask(user_id, {"user_id": user_id, **body}, is_there)

    def _leave_out(self, kind: str, name: str, draft: Draft) -> None:
        self._left_out.extend(Remark(kind, name, note) for note in draft.notes[-1:])

    def _remark(self, kind: str, name: str, note: Note) -> None:
        self._remarks.append(Remark(kind, name, note))
