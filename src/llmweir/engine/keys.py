"""The only place where a Redis key is spelled.

All keys of one user carry the same hash tag, so that one script may touch them all on a Redis Cluster. User ids are
percent-quoted: no id can close the tag early or reach into another user's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import quote

import msgspec

from llmweir.record_fields import caseless_email

SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        "doc": ":doc",
        "use": ":use",
        "window": ":win",
        "leases": ":leases",
        "day": ":day:",
        "memo": ":memo:",
    }
)
"""What follows a record's key to make the user's other keys; the Lua scripts spell them `SUFFIX.name`."""


class UserKeys(msgspec.Struct, frozen=True):
    """The keys of one user that every script is handed, as bytes ready for the wire; `window` begins several."""

    record: bytes
    doc: bytes
    use: bytes
    window: bytes
    leases: bytes


@lru_cache(maxsize=16_384)
def user_keys(user_id: str) -> UserKeys:
    """Spells the keys of a user; cached, because quoting costs more than a look-up."""
    record = f"lw:{{u:{quote(user_id, safe='@:+,=')}}}"
    names = ("doc", "use", "window", "leases")
    return UserKeys(record.encode(), *((record + SUFFIXES[name]).encode() for name in names))


def day(user_id: str, days_since_1970: int) -> bytes:
    """The key of a user's row of one UTC day."""
    return user_keys(user_id).record + SUFFIXES["day"].encode() + b"%d" % days_since_1970


def window(user_id: str, account: str) -> bytes:
    """The key of the rolling window of one account of a user: "u" the user's own, "m:gpt-4*" an entry's."""
    return user_keys(user_id).window + b":" + account.encode()


def api_key(key_hash: str) -> bytes:
    """The key that maps an API key's hash to its user id; written once, never changed."""
    return f"lw:key:{key_hash}".encode()


def email(address: str) -> bytes:
    """The key that holds the user id an email address belongs to; case does not matter."""
    return f"lw:email:{quote(caseless_email(address), safe='@+')}".encode()


def alias(key_alias: str) -> bytes:
    """The key that holds whose API key's alias this is."""
    return f"lw:alias:{quote(key_alias, safe='@+')}".encode()


def invitation(token_hash: str) -> bytes:
    """The key of an invitation, by the SHA-256 of its token."""
    return f"lw:invite:{token_hash}".encode()


def invitation_claim(token_hash: str) -> bytes:
    """The key that is there while somebody is setting a password with an invitation."""
    return f"lw:invite:{token_hash}:claim".encode()


class CatalogueKeys(msgspec.Struct, frozen=True):
    """The keys of a catalogue, all in one slot: `base` orders its entries by creation, and begins their places."""

    base: bytes
    rows: bytes
    writing: bytes

    def place(self, suffix: str) -> bytes:
        """The key of the sorted set that holds the places with this suffix."""
        return self.base + suffix.encode()


def catalogue(name: str) -> CatalogueKeys:
    """Spells the keys of the catalogue of "users" or of "keys"."""
    base = f"lw:{{{name}}}"
    return CatalogueKeys(*((base + suffix).encode() for suffix in ("", ":rows", ":writing")))


def role_place(role: str) -> str:
    """The suffix of the users with a role, by creation."""
    return f":role:{quote(role)}"


def team_place(team: str) -> str:
    """The suffix of the users, or the API keys, of a team, by creation."""
    return f":team:{quote(team)}"


def text_place(field: str) -> str:
    """The suffix of all users in the order of a text of theirs: "id", "email" or "alias"."""
    return f":by:{field}"
