"""Reads one user's page of the books out of the reply of `books.lua`."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import cast

import msgspec

from llmweir.engine.books_page import Account, Day, Lease, ModelUse, Page
from llmweir.engine.wire import Reply

_ACCOUNT = struct.Struct("<qiiqqiqqiq")
_MODEL = struct.Struct("<qiiiqqq")
_LEASE = struct.Struct("<qqqqi")
_LEASE_ROW = struct.Struct("<bi")
_TOMBSTONE_BYTES = 38  # no lease: it has no key and no model
_WHOLE = re.compile(rb"-?\d{1,19}")
_DURATION = re.compile(rb"[1-9]\d{0,18}(mo)?")
_DAY_ROW = re.compile(rb"(-?\d+) (-?\d+) (-?\d+) (-?\d+) (-?\d+)")


def read_page(user_id: str, reply: Reply) -> Page:
    """Takes the reply of `books.lua` apart; what cannot be read is named, never raised."""
    now_ms, exists, *rest = _list(reply)
    if exists == 0:
        return Page(user_id, cast(int, now_ms), False, tuple(map(_text, _list(rest[0]))))
    return _Reader(user_id, cast(int, now_ms)).read(*map(_list, rest))


class _Reader:
    """Reads the parts of a page, and notes what it cannot read."""

    def __init__(self, user_id: str, now_ms: int) -> None:
        self._user_id = user_id
        self._now_ms = now_ms
        self._unreadable: list[str] = []

    def read(
        self,
        record: list[Reply],
        key_fields: list[Reply],
        doc: list[Reply],
        use: list[Reply],
        leases: list[Reply],
        windows: list[Reply],
        days: list[Reply],
    ) -> Page:
        documents = dict(_pairs(doc))
        accounts, models, numbers = self._use(use)
        if record[2] is None:
            self._unreadable.append("the limits that every admission reads, field p of the record,")
        read_leases = [self._lease(name, value) for name, value in _pairs(leases)]
        return Page(
            self._user_id,
            self._now_ms,
            exists=True,
            period=self._period(record[0], record[1]),
            created_at_ms=self._whole("created_at_ms", documents.get("created_at_ms", b"")),
            email=_if_text(self._json(documents, "user_email")),
            keys={name[2:]: _text(value) for name, value in _pairs(key_fields)},
            key_rows={name[4:]: self._alias(documents, name) for name in documents if name.startswith("key:")},
            accounts=accounts,
            models=models,
            numbers=numbers,
            leases=tuple(lease for lease in read_leases if lease is not None),
            rings={_text(_list(one)[0]): self._ring(*_list(one)) for one in windows},
            days=tuple(self._day(*_list(day)) for day in days),
            unreadable=tuple(self._unreadable),
        )

    def _period(self, duration: Reply, anchor: Reply) -> tuple[str, int] | None:
        if duration is None:
            return None
        if not _DURATION.fullmatch(_bytes(duration)):
            self._unreadable.append("the duration of the budget's periods")
        return _text(duration), self._whole("ba", _bytes(anchor))

    def _use(self, use: list[Reply]) -> tuple[dict[str, Account], dict[str, ModelUse], dict[str, int]]:
        accounts: dict[str, Account] = {}
        models: dict[str, ModelUse] = {}
        numbers: dict[str, int] = {}
        for name, value in _pairs(use):
            if name == "u" or name.startswith(("m:", "k:")):
                if len(value) == _ACCOUNT.size:
                    accounts[name] = Account(*_ACCOUNT.unpack(value))
                else:
                    self._unreadable.append(f"the account {name}")
            elif name.startswith("s:"):
                if len(value) == _MODEL.size:
                    models[name[2:]] = ModelUse(*_MODEL.unpack(value))
                else:
                    self._unreadable.append(f"what was used of the model {name[2:]}")
            else:
                numbers[name] = self._whole(name, value)
        return accounts, models, numbers

    def _lease(self, request_id: str, value: bytes) -> Lease | None:
        if len(value) == _TOMBSTONE_BYTES:
            return None
        try:
            expires_at_ms, _, _, nanos, period = _LEASE.unpack_from(value)
            at = value.index(b"\0", value.index(b"\0", _LEASE.size) + 1) + 1  # behind the key and the model
            periods = {"u": period}
            while at < len(value):
                _, of_account = _LEASE_ROW.unpack_from(value, at)
                end = value.index(b"\0", at + _LEASE_ROW.size)
                periods[_text(value[at + _LEASE_ROW.size : end])] = of_account
                at = end + 1
        except (struct.error, ValueError):
            self._unreadable.append(f"the lease of request {request_id}")
            return None
        return Lease(request_id, expires_at_ms, nanos, periods)

    def _ring(self, account: Reply, flat: Reply) -> dict[int, int]:
        name = f"the window of the account {_text(account)}"
        return {self._whole(name, slot.encode()): self._whole(name, count) for slot, count in _pairs(_list(flat))}

    def _day(self, day: Reply, nanos: Reply, odd: Reply) -> Day:
        doubtful = {}
        for model, text in _pairs(_list(odd)):
            row = _DAY_ROW.fullmatch(text)
            if row is not None:
                doubtful[model] = tuple(map(int, row.groups()))
            else:
                self._unreadable.append(f"the row of the model {model} on day {day!r}")
        return Day(cast(int, day), int(_bytes(nanos)), doubtful)

    def _alias(self, documents: dict[str, bytes], name: str) -> str | None:
        row = self._json(documents, name)
        return _if_text(row.get("key_alias")) if isinstance(row, dict) else None

    def _json(self, documents: dict[str, bytes], name: str) -> object:
        try:
            return msgspec.json.decode(documents[name]) if name in documents else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._unreadable.append(f"the field {name} of the doc")
            return None

    def _whole(self, name: str, text: bytes) -> int:
        if _WHOLE.fullmatch(text):
            return int(text)
        if name not in self._unreadable:
            self._unreadable.append(name)
        return 0


def _pairs(flat: list[Reply]) -> Iterator[tuple[str, bytes]]:
    parts = iter(flat)
    return ((_text(name), _bytes(value)) for name, value in zip(parts, parts, strict=True))


def _if_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _text(reply: Reply) -> str:
    return _bytes(reply).decode(errors="backslashreplace")


def _bytes(reply: Reply) -> bytes:
    return reply if isinstance(reply, bytes) else b""


def _list(reply: Reply) -> list[Reply]:
    assert isinstance(reply, list)  # noqa: S101 (the script's header says so)
    return reply
