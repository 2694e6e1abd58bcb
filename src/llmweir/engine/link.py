"""The batched connection to Redis: commands of one event-loop turn leave in one write, replies are matched in order.

redis-py does what it does well (TLS, auth, Sentinel, the handshake); once its connection stands, `Wire` talks over its
transport directly, because a command through redis-py's own client costs ten times the CPU. Nobody ever waits for a
connection: all callers share one.

When Redis does not answer within the deadline, the connection breaks, or the server turns out not to take writes, the
circuit opens: every call fails at once until a probe gets through again, at most a second apart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from llmweir.engine import dial
from llmweir.engine.any_link import AnyLink, code_of
from llmweir.engine.dial import Dial
from llmweir.engine.redis_url import RedisTarget, read_redis_url
from llmweir.engine.wire import LONGEST_PROBE_WAIT_S, Receiver, Reply, ReplyError, Wire
from llmweir.errors import InvalidValueError, StoreUnavailableError

_log = logging.getLogger("llmweir.link")
_SHORTEST_PROBE_WAIT_S = 0.05

AWAY: Final[Mapping[str, str]] = {
    "READONLY": dial.READ_ONLY,
    "LOADING": dial.LOADING,
    "MASTERDOWN": dial.NO_MASTER,
}
"""Answers of a server that cannot serve at all just now, and what the circuit says of it."""

_MISPLACED: Mapping[str, str] = {
    "CLUSTERDOWN": "its cluster is down",
    "MOVED": "it is one node of a cluster, which redis_url should name as redis+cluster://",
    "ASK": "it is one node of a cluster, which redis_url should name as redis+cluster://",
}


class Link(AnyLink):
    """One multiplexed connection to a server, or to the master that sentinels name.

    Raises InvalidValueError for a URL that cannot be read, or that names a cluster. `timeout_ms` is the deadline of
    every call, `max_pending` the number of calls that may wait for replies; one more is refused at once. `on_down` is
    called when the circuit opens.
    """

    def __init__(self, url: str | RedisTarget, *, timeout_ms: int = 500, max_pending: int = 20_000) -> None:
        super().__init__()
        target = read_redis_url(url) if isinstance(url, str) else url
        if target.form == "cluster":
            raise InvalidValueError("a link is to one server; a cluster takes a link for each master.")
        self.target = target
        self._dial = Dial(target, max(1.0, timeout_ms / 1000))
        self._away = AWAY if target.form == "node" else {**AWAY, **_MISPLACED}
        self._timeout_s = timeout_ms / 1000
        self._max_pending = max_pending
        self._wire: Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connected_s = float("-inf")
        self._probe_wait_s = _SHORTEST_PROBE_WAIT_S
        self._down: StoreUnavailableError | None = None
        self._outgoing: list[bytes] = []
        self._unsent: list[Receiver] = []
        self._room = max_pending
        self._closed = False
        self.on_down: Callable[[], None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether the connection stands and answers in time."""
        return self._wire is not None and self._down is None

    @property
    def is_down(self) -> bool:
        """Whether the circuit is open: a call fails at once and never leaves."""
        return self._down is not None

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
        # A connection that was no good is not a reason to try again at once, and again.
        if time.monotonic() - self._connected_s < LONGEST_PROBE_WAIT_S:
            await self._pause()
        else:
            self._probe_wait_s = _SHORTEST_PROBE_WAIT_S
        while not self._closed:
            try:
                connection = await self._dial.connect()
            except (RedisError, OSError, TimeoutError) as error:
                if self._down is None:  # what it said is for the log alone
                    _log.warning("store_cannot_connect error=%r", f"{type(error).__name__}: {error}")
                self._open_circuit(dial.reason_of(error))
                await self._pause()
            else:
                self._take_over(connection)
                return

    async def _pause(self) -> None:
        await asyncio.sleep(self._probe_wait_s)
        self._probe_wait_s = min(LONGEST_PROBE_WAIT_S, self._probe_wait_s * 2)

    def _take_over(self, connection: AbstractConnection) -> None:
        # The handshake is done and nothing is under way, so the transport can change hands.
        writer = connection._writer  # noqa: SLF001 (redis-py has no public way to it)
        assert writer is not None  # noqa: S101 (it has just connected)
        transport = cast(asyncio.Transport, writer.transport)
        wire = Wire(transport, self._timeout_s, self, connection)
        transport.set_protocol(wire)
        self._wire, self._down, self._connecting = wire, None, None
        self._connected_s = time.monotonic()
        self._flush()
        _log.info("store_connected where=%s", self.target.where)
        if self.on_up is not None:
            self.on_up()

    def refused(self, wire: Wire, error: ReplyError) -> Exception:
        """Takes note of an error that Redis answered; one that means that it cannot serve ends the connection."""
        code = code_of(error)
        reason = self._away.get(code)
        if reason is None:
            return error
        if wire is self._wire and code in AWAY:
            self._wire = None
            self._open_circuit(reason)
            wire.close()
            self._connect()
        return StoreUnavailableError(reason)

    def stalled(self, wire: Wire, stalled: bool) -> None:
        """Opens the circuit when Redis does not answer in time, and closes it when it does again."""
        if wire is not self._wire:
            return
        if stalled and self._down is None:
            self._open_circuit("it does not answer in time")
        elif not stalled and self._down is not None and not self._closed:
            self._down = None
            _log.info("store_answers_again")
            if self.on_up is not None:
                self.on_up()

    def lost(self, wire: Wire) -> None:
        """Connects anew when the connection is gone."""
        if wire is not self._wire:
            return
        self._wire = None
        self._open_circuit("the connection was lost")
        if not self._closed:
            self._connect()

    def _open_circuit(self, reason: str) -> None:
        is_news = self._down is None and not self._closed
        if is_news:
            _log.warning("store_unavailable reason=%r", reason)
        self._down = StoreUnavailableError(reason)
        unsent, self._unsent, self._outgoing = self._unsent, [], []
        for future in unsent:
            if not future.done():
                future.set_exception(self._down)
        if is_news and self.on_down is not None:
            self.on_down()
