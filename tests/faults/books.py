"""The books as they lie in Redis, read past llmweir (see docs/data.md), and what does not balance in them."""

from __future__ import annotations

import struct
from typing import cast

import msgspec
import redis
from tests.faults.tally import Served, Tally

from llmweir.engine.keys import user_keys

_ACCOUNT = struct.Struct("<qiiqqiqqiq")
_MODEL = struct.Struct("<qiiiqqq")
_LEASE = struct.Struct("<qqqqi")
_TOMBSTONE_BYTES = 38
"""Of a lease that is none: it stands where a request was cancelled, or settled late, and has no key and no model."""


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """What Redis holds of a user; money in nano-dollars.

    `held_of` is what each lease holds, by request id, and `lapsed` what each lease that expired was charged with.
    """

    spent: int
    held: int
    running: int
    models_spent: int
    days_nanos: int
    days_requests: int
    held_of: dict[str, int]
    lapsed: dict[str, int]

    @property
    def leases(self) -> int:
        """The number of requests that hold a slot."""
        return len(self.held_of)


def read_books(client: redis.Redis, user_id: str) -> Books:
    """Reads the books of a user whose budget has no periods."""
    keys = user_keys(user_id)
    use = cast("dict[bytes, bytes]", client.hgetall(keys.use.decode()))
    account = account_of(client, user_id)
    models = [_MODEL.unpack(value) for field, value in use.items() if field.startswith(b"s:")]
    days = [line.split() for line in _day_lines(client, keys.record)]
    return Books(
        spent=account.spent - int(use.get(b"j", b"0")),
        held=account.held,
        running=account.running,
        models_spent=sum(model[0] for model in models),
        days_nanos=sum(model[6] for model in models) + sum(int(day[4]) for day in days),
        days_requests=sum(model[2] for model in models) + sum(int(day[0]) for day in days),
        held_of=_leases(cast("dict[bytes, bytes]", client.hgetall(keys.leases.decode()))),
        lapsed=_lapsed(client, keys.record),
    )


class Account(msgspec.Struct, frozen=True):
    """A user's own account: nano-dollars spent in the period, those held, requests in flight, the period's number."""

    spent: int
    held: int
    running: int
    period: int


def account_of(client: redis.Redis, user_id: str) -> Account:
    """Reads a user's own account."""
    packed = cast("bytes | None", client.hget(user_keys(user_id).use.decode(), "u"))
    fields = _ACCOUNT.unpack(packed) if packed is not None else (0,) * 10
    return Account(fields[7], fields[6], fields[5], fields[8])


def expected_nanos(books: Books, tally: Tally, user_id: str) -> int:
    """What a user with no request in flight is to be charged in all.

    Each request that the upstream answered whole is charged with its cost, once; each whose lease expired is charged
    as held, and the upstream may have answered it or not; nothing else is charged.
    """
    return sum(served.cost_nanos for served in _whole(books, tally, user_id)) + sum(books.lapsed.values())


def what_does_not_balance(books: Books, tally: Tally, user_id: str, *, uncharged: int = 0) -> list[str]:
    """Holds the books of a user with no request in flight against the tally, to the nano-dollar.

    `uncharged` nanos are known to be lost.
    """
    whole = _whole(books, tally, user_id)
    expected = expected_nanos(books, tally, user_id) - uncharged
    claims = {
        f"spent {books.spent}, expected {expected}": books.spent == expected,
        f"models {books.models_spent}, spent {books.spent}": books.models_spent == books.spent,
        f"days {books.days_nanos}, spent {books.spent}": books.days_nanos == books.spent,
        f"requests of days {books.days_requests}, expected {len(whole) + len(books.lapsed)}": uncharged
        or books.days_requests == len(whole) + len(books.lapsed),
        f"leases without a request: {sorted(books.held_of)}": not books.held_of,
        f"held {books.held}, running {books.running}": books.held == books.running == 0,
        f"served twice: {tally.repeated}": not tally.repeated,
        f"broken off, and charged with an estimate: {_broken(tally.of(user_id), books)}": not _broken(
            tally.of(user_id), books
        ),
    }
    return [claim for claim, holds in claims.items() if not holds]


def _whole(books: Books, tally: Tally, user_id: str) -> list[Served]:
    return [served for served in tally.of(user_id) if served.is_whole and served.request_id not in books.lapsed]


def _broken(served: list[Served], books: Books) -> list[str]:
    return [one.request_id for one in served if not one.is_whole and one.request_id not in books.lapsed]


def _day_lines(client: redis.Redis, record: bytes) -> list[bytes]:
    lines: list[bytes] = []
    for key in client.scan_iter(match=record + b":day:*", count=1000):
        lines += cast("list[bytes]", client.hvals(key))
    return lines


def _leases(packed: dict[bytes, bytes]) -> dict[str, int]:
    leases = {request_id: lease for request_id, lease in packed.items() if len(lease) > _TOMBSTONE_BYTES}
    return {request_id.decode(): _LEASE.unpack_from(lease)[3] for request_id, lease in leases.items()}


def _lapsed(client: redis.Redis, record: bytes) -> dict[str, int]:
    prefix = record + b":memo:"
    memos = {key: cast("bytes | None", client.get(key)) for key in client.scan_iter(match=prefix + b"*", count=1000)}
    return {
        key.removeprefix(prefix).decode(): _LEASE.unpack_from(memo)[3]
        for key, memo in memos.items()
        if memo is not None and memo != b"done"
    }
