"""Who may do what: the rights that a route asks for, and whoever presents a key."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from hmac import compare_digest

import msgspec

from llmweir.admin.attempts import FailedAttempts
from llmweir.admin.errors import AdminError
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.users import User
from llmweir.key_records import KeyRecord
from llmweir.record_fields import UserRole

Headers = Sequence[tuple[bytes, bytes]]
ReadKey = Callable[[Headers], str | None]


class Right(Enum):
    """What a route needs of the caller's role; each role has a set of them."""

    OPEN = auto()
    """No key is needed, and none is looked at."""
    OWN_USAGE = auto()
    """Reads the usage and the activity of the caller's own user."""
    OWN_READ = auto()
    """Reads the record and the keys of the caller's own user."""
    OWN_KEYS = auto()
    """Makes, changes, blocks and deletes keys of the caller's own user."""
    READ_ALL = auto()
    """Reads every user."""
    WRITE_ALL = auto()
    """Writes every user and key, limits among it."""


_ADMIN = frozenset(Right)
_VIEWER = frozenset({Right.OPEN, Right.OWN_USAGE, Right.OWN_READ, Right.READ_ALL})
_USAGE = frozenset({Right.OPEN, Right.OWN_USAGE})
RIGHTS: Mapping[UserRole, frozenset[Right]] = {
    "proxy_admin": _ADMIN,
    "proxy_admin_viewer": _VIEWER,
    "internal_user": frozenset({Right.OPEN, Right.OWN_USAGE, Right.OWN_READ, Right.OWN_KEYS}),
    "internal_user_viewer": frozenset({Right.OPEN, Right.OWN_USAGE, Right.OWN_READ}),
    "team": _USAGE,
    "customer": _USAGE,
}
"""The rights of each role; the master key has all."""


class Identity(msgspec.Struct, frozen=True):
    """Whoever calls, as read for this very call: a user by one of their keys, or the master key (`user` None).

    On an open route it is nobody: `role` is None, and no right but OPEN is there.
    """

    user: User | None = None
    key: KeyRecord | None = None
    is_master: bool = False

    @property
    def role(self) -> UserRole | None:
        """The caller's role; None for the master key and for nobody."""
        return self.user.record.user_role if self.user is not None else None

    @property
    def user_id(self) -> str | None:
        """The caller's own id; None for the master key and for nobody."""
        return self.user.record.user_id if self.user is not None else None

    @property
    def is_admin(self) -> bool:
        """Whether the caller may write all: `proxy_admin` and the master key."""
        return self.may(Right.WRITE_ALL)

    @property
    def reads_all(self) -> bool:
        """Whether the caller may read every user."""
        return self.may(Right.READ_ALL)

    def may(self, right: Right) -> bool:
        """Whether the caller has a right."""
        if self.is_master or right is Right.OPEN:
            return True
        return self.role is not None and right in RIGHTS[self.role]

    def whose(self, user_id: str | None, right_to_others: Right = Right.READ_ALL) -> str:
        """The user that a call is about: the one it names, else the caller's own.

        Raises AdminError: 400 where the master key names nobody, for it has no record; 403 where another user is
        named without `right_to_others`, whether that user exists or not.
        """
        if user_id is None:
            if self.user_id is None:
                raise AdminError(400, "The master key has no record of its own; name a user_id.", "user_id")
            return self.user_id
        if user_id != self.user_id and not self.may(right_to_others):
            raise AdminError(403, "Your role may only do this for your own user.", "user_id")
        return user_id


class Access:
    """Finds out who calls, afresh for every call.

    `read_key` finds the key among a request's headers. Without a `master_key` nobody gets in, and the refusal says how
    to set one. Expired keys and blocked ones are as good here as they are on the data plane.
    """

    def __init__(
        self,
        keys: ApiKeys,
        *,
        read_key: ReadKey,
        master_key: str | None,
        attempts: FailedAttempts,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self._keys = keys
        self._read_key = read_key
        self._master_key = master_key.encode() if master_key is not None else None
        self._attempts = attempts
        self._clock_ms = clock_ms or _wall_clock_ms

    async def identify(self, headers: Headers, client: str) -> Identity:
        """Who presents a key from the address `client`; raises AdminError where nobody may pass with it.

        - no master key is set: 503
        - no key, an unknown one, an expired one: 401, and 429 for the wrong ones after too many of them
        - a blocked user or key: 403

        A right key always passes: what others tried from the same address never locks anybody out.
        """
        if self._master_key is None:
            raise AdminError(503, "There is no master key; set LLMWEIR_MASTER_KEY to use the admin API.")
        secret = self._read_key(headers)
        if secret is None:
            raise _unauthorised("This needs a key, as 'Authorization: Bearer ...' or in x-api-key.")
        if compare_digest(secret.encode("latin-1"), self._master_key):
            return Identity(is_master=True)
        holder = await self._keys.holder(secret)
        if holder is None:
            raise self._wrong_key(client)
        return self._admitted(*holder)

    def _admitted(self, user: User, key: KeyRecord) -> Identity:
        if 0 < key.expires_at_ms <= self._clock_ms():
            raise _unauthorised("This key has expired.")
        if key.blocked or user.record.blocked:
            raise AdminError(403, f"This {'key' if key.blocked else 'user'} is blocked.")
        return Identity(user, key)

    def _wrong_key(self, client: str) -> AdminError:
        wait_s = self._attempts.count(client)
        if wait_s:
            message = f"Too many wrong keys came from your address. Please try again in {wait_s}s."
            return AdminError(429, message, headers={"retry-after": str(wait_s)})
        return _unauthorised("There is no such key.")


def require(identity: Identity, right: Right) -> None:
    """Raises AdminError (403) where the caller has not the right that a route needs."""
    if not identity.may(right):
        raise AdminError(403, f"The role {identity.role} may not do this.")


def _unauthorised(message: str) -> AdminError:
    return AdminError(401, message, headers={"www-authenticate": "Bearer"})


def _wall_clock_ms() -> int:
    return int(time.time() * 1000)
