"""Takes out of a chat stream what `stream_options.include_usage` put in, when the caller did not ask for it."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_KEY: Final = b'"usage"'
_NULL_MEMBER: Final = re.compile(
    rb',[ \t]*"usage"[ \t]*:[ \t]*null(?=[ \t]*[,}])|"usage"[ \t]*:[ \t]*null[ \t]*,[ \t]*'
)
# A trailing CR may be half of a CRLF, so it ends nothing until the next byte is seen.
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?![\n]|\Z))(?:\r\n|\n|\r(?![\n]|\Z))")
_LONGEST_CUT_END: Final = 3
_MAX_HELD_BYTES: Final = 1024 * 1024


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    usage: dict[str, msgspec.Raw] | None = None


_DECODE: Final = msgspec.json.Decoder(_Chunk).decode


class UsageEventFilter:
    """Removes the final event without choices that carries the usage, and `"usage":null` from all others.

    Whole events pass at once; only the bytes of an incomplete event are held, up to 1 MiB of them. Usage on an event
    that has choices stays: the upstream would have sent it unasked.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def filter(self, chunk: bytes) -> bytes:
        """Take a chunk of the upstream's answer and return what the caller gets of it now."""
        if not self._held and chunk.endswith(b"\n\n"):
            if _KEY not in chunk:
                return chunk
            stripped = chunk.replace(b',"usage":null}', b"}").replace(b',"usage":null,', b",")
            if _KEY not in stripped:
                return stripped
        searched = max(0, len(self._held) - _LONGEST_CUT_END)
        self._held += chunk
        return self._filter_events(searched)

    def flush(self) -> bytes:
        """Return what is still held at the end of the stream."""
        held = bytes(self._held)
        self._held.clear()
        return _without_usage(held)

    def _filter_events(self, searched: int) -> bytes:
        """Pass the events that have ended; no end lies before `searched`."""
        passed: list[bytes] = []
        start = 0
        while (match := _EVENT_END.search(self._held, max(start, searched))) is not None:
            passed.append(_without_usage(bytes(self._held[start : match.end()])))
            start = match.end()
        del self._held[:start]
        if len(self._held) > _MAX_HELD_BYTES:
            passed.append(bytes(self._held))
            self._held.clear()
        return b"".join(passed)


def _without_usage(event: bytes) -> bytes:
    if _KEY not in event:
        return event
    event = _NULL_MEMBER.sub(b"", event)
    if _KEY not in event or not _is_usage_event(event):
        return event
    return event[: len(event) - len(event.lstrip(b"\r\n"))]  # blank lines before it are not its own


def _is_usage_event(event: bytes) -> bool:
    data = b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
    try:
        chunk = _DECODE(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return chunk.choices == [] and bool(chunk.usage)
