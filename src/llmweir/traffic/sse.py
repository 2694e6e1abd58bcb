"""Decodes event streams without doing IO, by the WHATWG rules (HTML standard, section 9.2.6)."""

from __future__ import annotations

from typing import Final

import msgspec

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One event; `retry_ms` is None where the event did not set it, `id` is the last one the stream set."""

    data: str
    event: str = "message"
    id: str = ""
    retry_ms: int | None = None


class SseDecoder:
    """Turns the chunks of an event stream, cut anywhere, into its events.

    An event longer than `max_event_bytes` is skipped, so that memory stays bounded.
    """

    def __init__(self, max_event_bytes: int = 8 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._line_parts: list[bytes] = []
        self._started = False
        self._after_return = False
        self._skipping = False
        self._held_bytes = 0
        self._last_id = ""
        self._data: list[str] = []
        self._event = ""
        self._retry_ms: int | None = None

    def decode(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take a chunk and return the events it completes."""
        if self._after_return and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_return = False
        if not chunk:
            return []
        self._held_bytes += len(chunk)
        events: list[ServerSentEvent] = []
        if b"\n" in chunk or b"\r" in chunk:
            lines = b"".join((*self._line_parts, chunk)).splitlines()
            self._line_parts = [] if chunk.endswith((b"\n", b"\r")) else [lines.pop()]
            self._after_return = chunk.endswith(b"\r")
            events = self._take_lines(lines)
        elif not self._skipping:
            self._line_parts.append(chunk)
        else:
            self._line_parts = [b":"]  # else the end of this line would look like a blank one, which ends the event
        if self._held_bytes > self._max_event_bytes:
            self._skip_event()
        return events

    def flush(self) -> list[ServerSentEvent]:
        """End the stream and return the event that was still open.

        The standard drops an event without its closing blank line; it is kept here, for it may carry the usage.
        """
        lines = [b"".join(self._line_parts), b""]
        self._line_parts = []
        return self._take_lines(lines)

    def _skip_event(self) -> None:
        self._skipping = True
        self._held_bytes = 0
        # The rest of a line that has begun must not look like a line of its own, so it becomes a comment.
        self._line_parts = [b":"] if self._line_parts else []
        self._clear_event()

    def _take_lines(self, lines: list[bytes]) -> list[ServerSentEvent]:
        if not self._started:
            self._started = True
            lines[0:1] = [line.removeprefix(_BYTE_ORDER_MARK) for line in lines[0:1]]
        events: list[ServerSentEvent] = []
        for line in lines:
            if line:
                self._take_field(line)
            elif (event := self._close_event()) is not None:
                events.append(event)
        if events or not self._data:
            self._held_bytes = sum(map(len, self._line_parts))
        return events

    def _take_field(self, line: bytes) -> None:
        if self._skipping or line.startswith(b":"):
            return
        name, _, value_bytes = line.partition(b":")
        value = value_bytes.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
        elif name == b"id" and "\0" not in value:
            self._last_id = value
        elif name == b"retry" and value.isascii() and value.isdigit() and len(value) < 16:
            self._retry_ms = int(value)

    def _close_event(self) -> ServerSentEvent | None:
        event = None
        if self._data:
            event = ServerSentEvent("\n".join(self._data), self._event or "message", self._last_id, self._retry_ms)
        self._clear()
        return event

    def _clear(self) -> None:
        self._skipping = False
        self._clear_event()

    def _clear_event(self) -> None:
        self._data = []
        self._event = ""
        self._retry_ms = None
