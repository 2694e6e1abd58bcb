"""The batched connection to Redis: commands of one event-loop turn leave in one write, replies are matched in order.

redis-py does what it does well (URLs, TLS, auth, Sentinel, the handshake, retries on connect); once its connection
stands, this module talks over its transport directly, because a command through redis-py's own client costs ten times
the CPU. Nobody ever waits for a connection: all callers share one.

When Redis does not answer within the deadline, or the connection breaks, the circuit opens: every call fails at once
until a probe gets through again, at most a second apart.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import repeat
from typing import Protocol, TypeAlias, cast

import hiredis
import redis.asyncio as redis_asyncio
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from llmweir.engine.scripts import Script
from llmweir.errors import InvalidValueError, StoreUnavailableError

Reply: TypeAlias = "bytes | int | list[Reply] | None"
Argument: TypeAlias = "bytes | str | int"

_log = logging.getLogger("llmweir.link")
_NOT_ENOUGH_DATA = object()
_LONGEST_PROBE_WAIT_S = 1.0


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


class Link:
    """One multiplexed connection to the Redis at `url`; raises InvalidValueError for a URL that cannot be read.

    `timeout_ms` is the deadline of every call, `max_pending` the number of calls that may wait for replies; one more
    is refused at once. `on_up` is called each time a connection stands.
    """

    def __init__(self, url: str, *, timeout_ms: int = 500, max_pending: int = 20_000) -> None:
        try:
            self._pool = redis_asyncio.ConnectionPool.from_url(url, protocol=2, driver_info=None)
            self._pool.make_connection()  # type: ignore[no-untyped-call]  # it does not connect yet, only read options
        except (TypeError, ValueError) as error:
            raise InvalidValueError("redis_url is not one that redis-py can read; look at its options.") from error
        self._connect_timeout_s = max(1.0, timeout_ms / 1000)
        self._timeout_s = timeout_ms / 1000
        self._max_pending = max_pending
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._down: StoreUnavailableError | None = None
        self._outgoing: list[bytes] = []
        self._unsent: list[Receiver] = []
        self._room = max_pending
        self._closed = False
        self.on_up: Callable[[], None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether the connection stands and answers in time."""
        return self._wire is not None and self._down is None

    @property
    def is_down(self) -> bool:
        """Whether the circuit is open: a call fails at once and never leaves."""
        return self._down is not None

    def call(self, *command: Argument) -> asyncio.Future[Reply]:
        """Sends a command and returns the future of its reply; it fails with StoreUnavailableError or ReplyError."""
        return self.send(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub means one item

    def send(self, packed: bytes) -> asyncio.Future[Reply]:
        """Sends a command that is packed for the wire already, as `call` does."""
        wire = self._wire
        loop = wire.loop if wire is not None else asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self.post(packed, future)
        return future

    def post(self, packed: bytes, receiver: Receiver) -> None:
        """Sends a packed command whose reply, or error, `receiver` is handed as soon as it is here."""
        wire = self._wire
        if self._down is not None:
            receiver.set_exception(self._down)
            return
        unsent = self._unsent
        if not unsent:
            if wire is None:
                self._connect()
                self._room = self._max_pending
            else:
                wire.loop.call_soon(self._flush)
                self._room = self._max_pending - len(wire.waiting)
        if len(unsent) >= self._room:
            receiver.set_exception(StoreUnavailableError("too many calls are waiting for it"))
            return
        unsent.append(receiver)
        self._outgoing.append(packed)

    async def run(self, script: Script, *keys_and_arguments: Argument, keys: int) -> Reply:
        """Runs a script, and heals a script cache that was flushed."""
        packed = hiredis.pack_command((b"EVALSHA", script.sha, keys, *keys_and_arguments))  # type: ignore[arg-type]  # as above
        return await self.run_packed(script, packed)

    async def run_packed(self, script: Script, packed: bytes) -> Reply:
        """Runs a script whose call is packed already, and heals a script cache that was flushed."""
        try:
            return await self.send(packed)
        except ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        self.call(b"SCRIPT", b"LOAD", script.source).add_done_callback(_ignore)
        return await self.send(packed)

    def _flush(self) -> None:
        """Writes all that was issued in one event-loop turn."""
        if self._outgoing and self._wire is not None:
            self._wire.send(b"".join(self._outgoing), self._unsent)
            self._outgoing, self._unsent = [], []

    async def ready(self) -> None:
        """Waits until the connection stands and answers; raises StoreUnavailableError when it does not in time."""
        await self.call(b"PING")

    async def aclose(self) -> None:
        """Closes the connection; whatever waits fails."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        wire, self._wire = self._wire, None
        self._open_circuit("the link was closed")
        if wire is not None:
            wire.close()

    def _connect(self) -> None:
        if self._connecting is None:
            loop = asyncio.get_running_loop()
            self._connecting = loop.create_task(self._keep_connecting())
            loop.call_later(self._timeout_s, self._not_connected_in_time)

    def _not_connected_in_time(self) -> None:
        if self._wire is None and self._down is None:
            self._open_circuit("it cannot be reached in time")

    async def _keep_connecting(self) -> None:
        wait_s = 0.05
        while not self._closed:
            try:
                await self._open_wire()
            except (RedisError, OSError, TimeoutError) as error:
                if self._down is None:  # where it is, and why, is for the log alone
                    _log.warning("store_cannot_connect error=%r", f"{type(error).__name__}: {error}")
                self._open_circuit("it cannot be reached")
                await asyncio.sleep(wait_s)
                wait_s = min(_LONGEST_PROBE_WAIT_S, wait_s * 2)
            else:
                return

    async def _open_wire(self) -> None:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]  # untyped there
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]  # untyped there
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        # The handshake is done and nothing is under way, so the transport can change hands.
        writer = connection._writer  # noqa: SLF001 (redis-py has no public way to it)
        assert writer is not None  # noqa: S101 (it has just connected)
        transport = cast(asyncio.Transport, writer.transport)
        wire = _Wire(transport, self._timeout_s, self._stalled, self._lost, connection)
        transport.set_protocol(wire)
        self._wire, self._down, self._connecting = wire, None, None
        self._flush()
        _log.info("store_connected")
        if self.on_up is not None:
            self.on_up()

    def _stalled(self, stalled: bool) -> None:
        if stalled and self._down is None:
            self._open_circuit("it does not answer in time")
        elif not stalled and self._down is not None and not self._closed:
            self._down = None
            _log.info("store_answers_again")
            if self.on_up is not None:
                self.on_up()

    def _lost(self, wire: _Wire) -> None:
        if wire is not self._wire:
            return
        self._wire = None
        self._open_circuit("the connection was lost")
        if not self._closed:
            self._connect()

    def _open_circuit(self, reason: str) -> None:
        if self._down is None and not self._closed:
            _log.warning("store_unavailable reason=%r", reason)
        self._down = StoreUnavailableError(reason)
        unsent, self._unsent, self._outgoing = self._unsent, [], []
        for future in unsent:
            if not future.done():
                future.set_exception(self._down)


def _ignore(future: asyncio.Future[Reply]) -> None:
    """Takes note of an error, so that nobody is told that nobody did."""
    if not future.cancelled():
        future.exception()


class _Wire(asyncio.Protocol):
    """The transport of one connection, and the calls that wait for its replies, oldest first."""

    def __init__(
        self,
        transport: asyncio.Transport,
        timeout_s: float,
        stalled: Callable[[bool], None],
        lost: Callable[[_Wire], None],
        owner: AbstractConnection,
    ) -> None:
        self._transport = transport
        self._owner = owner  # kept alive: it closes the socket when it is collected
        self._reader = hiredis.Reader(notEnoughData=_NOT_ENOUGH_DATA, replyError=ReplyError)
        self._timeout_s = timeout_s
        self._stalled = stalled
        self._lost = lost
        self.loop = asyncio.get_running_loop()
        self._late_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.waiting: deque[tuple[Receiver, float]] = deque()

    def send(self, packed: bytes, receivers: list[Receiver]) -> None:
        now = self.loop.time()
        deadline = now + self._timeout_s
        self.waiting.extend(zip(receivers, repeat(deadline)))
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._watch)
        self._transport.write(packed)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        waiting, gets = self.waiting, self._reader.gets
        while (reply := gets()) is not _NOT_ENOUGH_DATA:
            future, _ = waiting.popleft()
            if future.done():
                continue
            if isinstance(reply, ReplyError):
                future.set_exception(reply)
            else:
                future.set_result(reply)
        if self._late_since is not None and not (waiting and waiting[0][0].done()):
            self._late_since = None
            self._stalled(False)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        if self._timer is not None:
            self._timer.cancel()
        self._let_owner_go()
        self._lost(self)
        error = StoreUnavailableError("the connection was lost")
        for future, _ in self.waiting:
            if not future.done():
                future.set_exception(error)
        self.waiting.clear()

    def close(self) -> None:
        self._transport.abort()
        self._let_owner_go()

    def _let_owner_go(self) -> None:
        """Tells redis-py's connection, which does not see that its transport is gone, by its one (private) way."""
        self._owner._close()  # type: ignore[no-untyped-call]  # noqa: SLF001 (as its docstring says)

    def _watch(self) -> None:
        """Fails the calls past their deadline; a connection that stays silent for a second more is given up."""
        now = self.loop.time()
        self._timer = None
        for future, deadline in self.waiting:
            if deadline > now:
                break
            if not future.done():
                future.set_exception(StoreUnavailableError("it does not answer in time"))
                if self._late_since is None:
                    self._late_since = now
                    self._stalled(True)
        if self._late_since is not None and now - self._late_since >= _LONGEST_PROBE_WAIT_S:
            self._transport.abort()
        elif self.waiting:
            next_deadline = next((due for future, due in self.waiting if not future.done()), now + self._timeout_s)
            self._timer = self.loop.call_at(max(next_deadline, now + 0.005), self._watch)
