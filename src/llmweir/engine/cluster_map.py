"""Which node of a cluster has which slot, and which slot a command goes to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, cast

import msgspec
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from llmweir.engine.redis_url import Address
from llmweir.engine.wire import Reply

SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS

EVERY_MASTER: Final = -1
"""Instead of a slot: the command is for all masters."""

_FOR_ALL = frozenset({b"PING", b"SCRIPT"})
_KEY_AT = {b"EVALSHA": 3, b"EVAL": 3}
_LENGTH = re.compile(rb"[*$](\d+)\r\n")
_NOWHERE = frozenset({b"", b"?"})


class SlotRange(msgspec.Struct, frozen=True):
    """The slots from `first` to `last`, both included, and the master that serves them."""

    first: int
    last: int
    master: Address


class ClusterMap(msgspec.Struct, frozen=True):
    """The cluster as one of its nodes sees it; `nodes` are the masters and the replicas."""

    ranges: tuple[SlotRange, ...]
    nodes: frozenset[Address]

    @property
    def masters(self) -> frozenset[Address]:
        """The nodes that serve slots."""
        return frozenset(each.master for each in self.ranges)

    @property
    def is_whole(self) -> bool:
        """Whether every slot has a master."""
        return sum(each.last - each.first + 1 for each in self.ranges) == SLOTS


def read_slots(reply: Reply, asked: Address) -> ClusterMap:
    """Reads the answer to CLUSTER SLOTS; a node that does not know its own host is where it was asked."""
    ranges: list[SlotRange] = []
    nodes: set[Address] = set()
    for first, last, *servers in cast("list[list[int]]", reply):
        found = [_address(cast("list[bytes | int | None]", server), asked) for server in servers]
        ranges.append(SlotRange(first, last, found[0]))
        nodes.update(found)
    return ClusterMap(tuple(ranges), frozenset(nodes))


def read_redirection(error: str, answered: Address) -> tuple[int, Address]:
    """Reads `MOVED 3999 host:port` or ASK; without a host it is that of the node that answered."""
    _, slot, place = error.split(" ", 2)
    host, _, port = place.rpartition(":")
    return int(slot), (host.strip("[]") or answered[0], int(port))


def slot_of(packed: bytes) -> int:
    """The slot of a packed command's first key, or `EVERY_MASTER`."""
    parts = packed.split(b"\r\n", 8)
    if parts[2] == b"EVALSHA":
        return key_slot(parts[8][: int(parts[7][1:])])
    return _slot_of_any(packed)


def probe_keys(ranges: tuple[SlotRange, ...]) -> dict[Address, bytes]:
    """A key for each master that lies in a slot of its own; nothing is ever stored there."""
    wanted = {each.master for each in ranges}
    found: dict[Address, bytes] = {}
    for number in range(SLOTS):
        if len(found) == len(wanted):
            break
        key = b"lw:probe:%d" % number
        slot = key_slot(key)
        master = next((each.master for each in ranges if each.first <= slot <= each.last), None)
        if master is not None:
            found.setdefault(master, key)
    return found


def _slot_of_any(packed: bytes) -> int:
    items = _items(packed)
    name = next(items).upper()
    if name in _FOR_ALL:
        return EVERY_MASTER
    rest = list(zip(range(_KEY_AT.get(name, 1)), items, strict=False))
    return key_slot(rest[-1][1]) if rest else 0


def _items(packed: bytes) -> Iterator[bytes]:
    head = _LENGTH.match(packed)
    assert head is not None  # noqa: S101 (hiredis packed it)
    at = head.end()
    for _ in range(int(head[1])):
        length = _LENGTH.match(packed, at)
        assert length is not None  # noqa: S101 (as above)
        at = length.end() + int(length[1])
        yield packed[length.end() : at]
        at += 2


def _address(server: list[bytes | int | None], asked: Address) -> Address:
    host, port = server[0], server[1]
    assert isinstance(port, int)  # noqa: S101 (so says CLUSTER SLOTS)
    return (host.decode() if isinstance(host, bytes) and host not in _NOWHERE else asked[0], port)
