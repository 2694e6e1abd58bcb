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
    return f"lw:email:{quote(address.casefold(), safe='@+')}".encode()
