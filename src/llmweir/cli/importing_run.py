"""An import at work: makes users and keys in a running llmweir, and goes on past what it refuses."""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from llmweir.cli.importing_keys import MINTED, KeyFile, NewKeyRow
from llmweir.cli.importing_plan import KeyTask, There, UserTask
from llmweir.cli.remote import NotAllowedError, NotThereError, RefusedError, Remote, UnreachableError

PAGE_SIZE = 100
OnStep: TypeAlias = Callable[[], None]


class Failure(msgspec.Struct, frozen=True):
    """A user or key that llmweir refused."""

    kind: str
    name: str
    message: str


class Outcome(msgspec.Struct):
    """What an import has done."""

    made_users: int = 0
    changed_users: int = 0
    kept_users: int = 0
    minted_keys: int = 0
    kept_keys: int = 0
    failures: list[Failure] = msgspec.field(default_factory=list)


def who_is_there(remote: Remote) -> There:
    """Reads the users that llmweir has; raises RefusedError."""
    owners: dict[str, str] = {}
    user_ids: set[str] = set()
    page = 1
    while True:
        asked = {"page": page, "page_size": PAGE_SIZE, "sort_by": "user_id", "sort_order": "asc"}
        content = remote.get("/user/list", asked).content
        rows = content.get("users") if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "user_id" in row for row in rows):
            raise UnreachableError("/user/list does not answer as llmweir does.")
        for row in rows:
            user_ids.add(str(row["user_id"]))
            if row.get("user_email"):
                owners[str(row["user_email"]).lower()] = str(row["user_id"])
        total_pages = content.get("total_pages")
        if not isinstance(total_pages, int) or page >= total_pages:
            return There(frozenset(user_ids), owners)
        page += 1


class Import:
    """Carries out a plan. What one user or key is refused for is kept; anything else raises RefusedError at once."""

    def __init__(self, remote: Remote, *, updates: bool) -> None:
        self._remote = remote
        self._updates = updates
        self._absent: set[str] = set()
        self.outcome = Outcome()

    def make_users(self, tasks: Iterable[UserTask], on_step: OnStep) -> None:
        """Makes the users that are not there; changes those that are, where that is wanted."""
        for task in tasks:
            if not self._tried("user", task.user_id, functools.partial(self._make_user, task)) and not task.is_there:
                self._absent.add(task.user_id)
            on_step()

    def mint_keys(self, tasks: Sequence[KeyTask], file: KeyFile, on_step: OnStep) -> None:
        """Mints the keys that are not there; raises KeyFileError.

        New keys are made up here and are in the file before the server hears of them, so that none is lost or minted
        twice, wherever an import breaks off.
        """
        rows = file.read()
        doubtful = {old_token for old_token, row in rows.items() if row.state != MINTED}
        rows |= {task.old_token: _new_row(task) for task in tasks if not task.secret and task.old_token not in rows}
        file.write(rows.values())
        try:
            for task in tasks:
                self._mint(task, rows, is_doubtful=task.secret is not None or task.old_token in doubtful)
                on_step()
        finally:
            file.write(rows.values())

    def _make_user(self, task: UserTask) -> None:
        if not task.is_there:
            self._remote.post("/user/new", {**task.body, "auto_create_key": False})
            self.outcome.made_users += 1
        elif self._updates:
            self._remote.post("/user/update", task.body)
            self.outcome.changed_users += 1
        else:
            self.outcome.kept_users += 1

    def _mint(self, task: KeyTask, rows: dict[str, NewKeyRow], *, is_doubtful: bool) -> None:
        if task.secret is not None:
            self._try_to_mint(task, task.secret, is_doubtful=is_doubtful)
            return
        row = rows[task.old_token]
        if row.state == MINTED:
            self.outcome.kept_keys += 1
        elif self._try_to_mint(task, row.new_key, is_doubtful=is_doubtful):
            rows[task.old_token] = msgspec.structs.replace(row, state=MINTED)
        else:
            del rows[task.old_token]

    def _try_to_mint(self, task: KeyTask, secret: str, *, is_doubtful: bool) -> bool:
        return self._tried("key", task.label, lambda: self._mint_one(task, secret, is_doubtful=is_doubtful))

    def _mint_one(self, task: KeyTask, secret: str, *, is_doubtful: bool) -> None:
        if task.body["user_id"] in self._absent:
            raise RefusedError("Its user could not be made.")
        if is_doubtful and self._has(secret):
            self.outcome.kept_keys += 1
            return
        self._remote.post("/key/generate", {**task.body, "key": secret})
        self.outcome.minted_keys += 1

    def _has(self, secret: str) -> bool:
        try:
            self._remote.get("/key/info", {"key": hashlib.sha256(secret.encode()).hexdigest()})
        except NotThereError:
            return False
        return True

    def _tried(self, kind: str, name: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except (UnreachableError, NotAllowedError):
            raise
        except RefusedError as error:
            self.outcome.failures.append(Failure(kind, name, error.message))
            return False
        return True


def _new_row(task: KeyTask) -> NewKeyRow:
    alias = str(task.body.get("key_alias") or "")
    return NewKeyRow(task.body["user_id"], alias, task.key_name, task.old_token, f"sk-{secrets.token_urlsafe(32)}")
