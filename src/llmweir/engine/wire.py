"""The transport of one connection to Redis, and the calls that wait for its replies, oldest first."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import repeat
from typing import Final, Protocol, TypeAlias

import hiredis
from redis.asyncio.connection import AbstractConnection

from llmweir.errors import StoreUnavailableError

Reply: TypeAlias = "bytes | int | list[Reply] | None"

LONGEST_PROBE_WAIT_S: Final = 1.0

_NOT_ENOUGH_DATA = object()


class Receiver(Protocol):
    """Whoever waits for a reply; a future is one."""

    def done(self) -> bool:
        """Whether it has had its reply, or an error instead."""

    def set_result(self, reply: Reply, /) -> None:
        """Take the reply."""

    def set_exception(self, error: BaseException, /) -> None:
        """Take an error."""


class ReplyError(Exception):
    """Redis answered a command with an error; the message is Redis' own."""


def ignore(future: asyncio.Future[Reply]) -> None:
    """Takes note of an error, so that nobody is told that nobody did."""
    if not future.cancelled():
        future.exception()


class WireOwner(Protocol):
    """What a wire tells of itself."""

    def refused(self, wire: Wire, error: ReplyError, /) -> Exception:
        """Take note of an error that Redis answered; returns the one for the caller."""

    def stalled(self, wire: Wire, stalled: bool, /) -> None:
        """Take note that Redis does not answer in time, or does again."""

    def lost(self, wire: Wire, /) -> None:
        """Take note that the connection is gone."""


class Wire(asyncio.Protocol):
    """One connection whose handshake is done; it takes the transport over from redis-py's `connection`."""

    def __init__(
        self, transport: asyncio.Transport, timeout_s: float, owner: WireOwner, connection: AbstractConnection
    ) -> None:
        self._transport = transport
        self._connection = connection  # kept alive: it closes the socket when it is collected
        self._reader = hiredis.Reader(notEnoughData=_NOT_ENOUGH_DATA, replyError=ReplyError)
        self._timeout_s = timeout_s
        self._owner = owner
        self.loop = asyncio.get_running_loop()
        self._late_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.waiting: deque[tuple[Receiver, float]] = deque()

    def send(self, packed: bytes, receivers: list[Receiver]) -> None:
        """Writes commands, whose replies the receivers are handed in order."""
        now = self.loop.time()
        deadline = now + self._timeout_s
        self.waiting.extend(zip(receivers, repeat(deadline)))
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._watch)
        self._transport.write(packed)

    def data_received(self, data: bytes) -> None:
        """Hands each reply to the one who waits for it."""
        self._reader.feed(data)
        waiting, gets = self.waiting, self._reader.gets
        while (reply := gets()) is not _NOT_ENOUGH_DATA:
            future, _ = waiting.popleft()
            if future.done():
                continue
            if isinstance(reply, ReplyError):
                future.set_exception(self._owner.refused(self, reply))
            else:
                future.set_result(reply)
        if self._late_since is not None and not (waiting and waiting[0][0].done()):
            self._late_since = None
            self._owner.stalled(self, False)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Fails what waits."""
        if self._timer is not None:
            self._timer.cancel()
        self._let_connection_go()
        self._owner.lost(self)
        error = StoreUnavailableError("the connection was lost", may_be_done=True)
        for future, _ in self.waiting:
            if not future.done():
                future.set_exception(error)
        self.waiting.clear()

    def close(self) -> None:
        """Ends the connection; whatever waits fails at the next turn of the event loop."""
        self._transport.abort()
        self._let_connection_go()

    def _let_connection_go(self) -> None:
        """Tells redis-py's connection, which does not see that its transport is gone, by its one (private) way."""
        self._connection._close()  # type: ignore[no-untyped-call]  # noqa: SLF001 (as its docstring says)

    def _watch(self) -> None:
        """Fails the calls past their deadline; a connection that stays silent for a second more is given up."""
        now = self.loop.time()
        self._timer = None
        for future, deadline in self.waiting:
            if deadline > now:
                break
            if not future.done():
                future.set_exception(StoreUnavailableError("it does not answer in time", may_be_done=True))
                if self._late_since is None:
                    self._late_since = now
                    self._owner.stalled(self, True)
        if self._late_since is not None and now - self._late_since >= LONGEST_PROBE_WAIT_S:
            self._transport.abort()
        elif self.waiting:
            next_deadline = next((due for future, due in self.waiting if not future.done()), now + self._timeout_s)
            self._timer = self.loop.call_at(max(next_deadline, now + 0.005), self._watch)
