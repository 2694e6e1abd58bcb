"""Reads a request's body, bounded in bytes and time, and plays it back to the app behind."""

from __future__ import annotations

import asyncio
from typing import Any

from llmweir.errors import UnreadableRequestError
from llmweir.traffic.asgi import Message, Receive


class ClientLeftError(Exception):
    """The client went away before its request was complete; there is nobody to answer."""


class BodyReader:
    """Reads bodies of at most `max_bytes` that arrive within `timeout_s`.

    One clock serves all bodies under way: a timer for each would cost more than reading most of them.
    """

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._tick_s = min(1.0, timeout_s / 4)
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._clock: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def read(self, receive: Receive, declared_bytes: int) -> bytes:
        """Returns the whole body; raises UnreadableRequestError (413, 408) or ClientLeftError."""
        if declared_bytes > self._max_bytes:
            raise self._too_large()
        if declared_bytes == 0:
            return b""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 (a server runs every request in a task)
        self._deadlines[task] = loop.time() + self._timeout_s
        if self._clock is None:
            self._clock = loop.call_later(self._tick_s, self._tick)
        try:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                body: bytes = message.get("body", b"")
                if len(body) <= self._max_bytes:
                    return body
            return await self._read_parts(message, receive)
        except asyncio.CancelledError:
            if task in self._deadlines:
                raise
            task.uncancel()
            raise UnreadableRequestError(408, "body_timeout", "The body did not arrive in time.") from None
        finally:
            self._deadlines.pop(task, None)

    async def _read_parts(self, message: Message, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes:
                raise self._too_large()
            if not message.get("more_body"):
                return b"".join(parts)
            message = await receive()

    def _tick(self) -> None:
        """Cancels the tasks whose bodies are late; by the missing deadline they know that it was this."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        late = [task for task, deadline in self._deadlines.items() if deadline <= now]
        for task in late:
            del self._deadlines[task]
            task.cancel()
        self._clock = loop.call_later(self._tick_s, self._tick) if self._deadlines else None

    def _too_large(self) -> UnreadableRequestError:
        return UnreadableRequestError(413, "body_too_large", f"The body is larger than {self._max_bytes} bytes.")


class Replay:
    """An ASGI `receive` that gives a body that was read already, then what really comes (the client leaving)."""

    __slots__ = ("_body", "_receive")

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        """The next message."""
        if self._body is not None:
            message: dict[str, Any] = {"type": "http.request", "body": self._body, "more_body": False}
            self._body = None
            return message
        return await self._receive()
