"""Reads one fuzzer's bytes as the several arguments a target needs; every input means something."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

T = TypeVar("T")


class Input:
    """The bytes of one input, taken from the front; past their end they are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        value = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return value

    def choice(self, options: Sequence[T]) -> T:
        return options[self.byte() % len(options)]

    def line(self) -> bytes:
        """Take up to the next LF, which is dropped."""
        end = self._data.find(b"\n", self._at)
        end = len(self._data) if end < 0 else end
        found = self._data[self._at : end]
        self._at = end + 1
        return found

    def rest(self) -> bytes:
        found = self._data[self._at :]
        self._at = len(self._data)
        return found


def pieces(whole: bytes, how: int) -> list[bytes]:
    """Cut bytes into pieces: `how` names the cuts, 0 is none, 1 one byte each."""
    if how == 0 or not whole:
        return [whole]
    cuts = {0, len(whole)}
    at, step = 0, how
    while at < len(whole):
        cuts.add(at)
        at += step if how < 16 else 1 + step % 31
        step = step if how < 16 else (step * 73 + 41) % 257
    return [whole[one:two] for one, two in pairwise(sorted(cuts))]


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


class Pairs(list[tuple[str, Any]]):
    """A JSON object as its members in order."""


def loads(text: bytes) -> Any:
    """Read JSON by the standard library; objects become `Pairs`, endless integers their digits."""

    def number(digits: str) -> int | str:
        return int(digits) if len(digits) < 4000 else digits

    return json.loads(text.decode(), object_pairs_hook=Pairs, parse_int=number)


def members_of(value: Any) -> dict[str, Any]:
    """Return the members of an object; raises RepeatedKeyError where one comes twice."""
    assert isinstance(value, Pairs), "not an object"
    members = dict(value)
    if len(members) != len(value):
        raise RepeatedKeyError
    return members


def has_twice(value: Any) -> bool:
    """Tell whether any object in a value has a key twice."""
    if isinstance(value, Pairs):
        return len(dict(value)) != len(value) or any(has_twice(inner) for _, inner in value)
    return isinstance(value, list) and any(map(has_twice, value))
