"""How a connection to Redis is made: to one server, or to the master that sentinels name just now.

redis-py does it (sockets, TLS, login, Sentinel); what is added is the question whether the server takes writes.
"""

from __future__ import annotations

import asyncio
import contextlib

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from llmweir.engine.redis_url import RedisTarget

READ_ONLY = "it is a read-only replica"
LOADING = "it is loading its data"
NO_MASTER = "it is a replica that has lost its master"


class _ReplicaError(RedisError):
    """The server is a replica."""


_REASONS: tuple[tuple[type[RedisError], str], ...] = (
    (_ReplicaError, READ_ONLY),
    (MasterNotFoundError, "no sentinel names a master"),
    (BusyLoadingError, LOADING),
    (MasterDownError, NO_MASTER),
    (AuthenticationError, "it refuses the user or the password"),
    (NoPermissionError, "it refuses the user a command"),
)


def reason_of(error: Exception) -> str:
    """Why there is no connection, in words that show no address."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "it cannot be reached")


class Dial:
    """Makes connections to a server, a cluster's node, or a master that sentinels name."""

    def __init__(self, target: RedisTarget, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._sentinel: Sentinel | None = None
        self._asks_role = target.form != "node"  # a node that is no master says so to each command
        if target.form == "sentinel":
            self._sentinel = _sentinel(target, timeout_s)
            self._pool: ConnectionPool = SentinelConnectionPool(
                target.name, self._sentinel, ssl=target.is_tls, **target.options
            )  # type: ignore[no-untyped-call]  # untyped there
        else:
            self._pool = _pool(target)

    async def connect(self) -> AbstractConnection:
        """Opens a connection to a server that takes writes; raises RedisError, OSError or TimeoutError."""
        async with asyncio.timeout(self._timeout_s):
            try:
                return await self._open()
            except ResponseError as error:
                if not self._asks_role or self._sentinel is not None or isinstance(error, _LATER):
                    raise
            # It has no ROLE (a proxy), or its user may not call it: taken for a master, as long as it takes writes.
            self._asks_role = False
            return await self._open()

    async def _open(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]  # as above
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # as above
            await self._ask(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._leave_sentinels()
        return connection

    async def _ask(self, connection: AbstractConnection) -> None:
        await connection.send_command("PING", check_health=False)
        await connection.read_response()
        if not self._asks_role:
            return
        await connection.send_command("ROLE", check_health=False)
        role = await connection.read_response()
        if role[0] in {b"slave", "slave"}:
            if self._sentinel is not None:  # the one that was asked has not heard yet: ask another first
                self._sentinel.sentinels.append(self._sentinel.sentinels.pop(0))
            raise _ReplicaError("it is a replica")

    async def _leave_sentinels(self) -> None:
        if self._sentinel is not None:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await self._sentinel.aclose()


_LATER = (MasterDownError,)
"""Errors that a server answers only for a while."""


def _pool(target: RedisTarget) -> ConnectionPool:
    if target.path:
        return ConnectionPool(UnixDomainSocketConnection, path=target.path, **target.options)
    host, port = target.addresses[0]
    return ConnectionPool(SSLConnection if target.is_tls else Connection, host=host, port=port, **target.options)


def _sentinel(target: RedisTarget, timeout_s: float) -> Sentinel:
    """Asks the sentinels one after the other, none for so long that there would be no time for the others."""
    each_s = timeout_s / (len(target.addresses) + 1)
    tls = {name: value for name, value in target.options.items() if name.startswith("ssl_")}
    return Sentinel(  # type: ignore[no-untyped-call]  # untyped there
        target.addresses,
        sentinel_kwargs={
            "protocol": 2,
            "driver_info": None,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": each_s,
            "socket_connect_timeout": each_s,
            "ssl": target.is_tls,
            **tls,
            **target.sentinel_options,
        },
    )
