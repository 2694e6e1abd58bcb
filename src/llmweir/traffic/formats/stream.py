"""Reads the usage out of a streamed answer: chunks are only kept while it runs, and decoded at its end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final, Protocol

import msgspec

from llmweir.traffic.formats.base import StreamOutcome
from llmweir.traffic.sse import SseDecoder

_FOLD_BYTES: Final = 256 * 1024
_TAIL_LINES: Final = 8
_DECODE: Final = msgspec.json.Decoder().decode
_WHOLE_VALUES: Final = frozenset(("args", "input"))


class Tally(Protocol):
    """Adds up the events of one stream in one dialect."""

    usage_key: bytes
    usage_is_last: bool
    """Whether nothing that costs comes after the usage."""

    def add_usage(self, data: bytes) -> None:
        """Take the usage of an event's data, in any order of the events; data that is not JSON is passed over."""

    def add_text(self, event: dict[str, object]) -> None:
        """Count the text that an event delivers."""

    def outcome(self) -> StreamOutcome:
        """Say what the events came to."""


class BufferedStreamReader:
    """Keeps up to 256 KiB of chunks; beyond that it decodes what it holds and keeps the sums."""

    __slots__ = ("_chunks", "_decoder", "_held_bytes", "_tally", "_tally_type")

    def __init__(self, tally_type: type[Tally]) -> None:
        self._tally_type = tally_type
        self._tally: Tally | None = None
        self._decoder: SseDecoder | None = None
        self._chunks: list[bytes] = []
        self._held_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Keep a chunk."""
        self._chunks.append(chunk)
        self._held_bytes += len(chunk)
        if self._held_bytes > _FOLD_BYTES:
            self._fold()

    def finish(self) -> StreamOutcome:
        """Return what the stream came to: from its last events where they say it, else from all of them."""
        if self._tally is None:
            quick, held = self._tally_type(), b"".join(self._chunks)
            is_end = not (quick.usage_is_last and _goes_on(held, quick.usage_key))
            for line in islice(_lines_from_the_end(held, quick.usage_key), _TAIL_LINES if is_end else 0):
                quick.add_usage(line)
                outcome = quick.outcome()
                if outcome.complete:
                    return outcome
        self._fold(last=True)
        return self._tally.outcome() if self._tally is not None else StreamOutcome(None)

    def _fold(self, *, last: bool = False) -> None:
        self._tally = tally = self._tally or self._tally_type()
        self._decoder = decoder = self._decoder or SseDecoder()
        events = decoder.decode(b"".join(self._chunks))
        self._chunks.clear()
        self._held_bytes = 0
        for event in events + decoder.flush() if last else events:
            data = event.data.encode()
            tally.add_text(decode_object(data))
            if tally.usage_key in data:
                tally.add_usage(data)


def _goes_on(held: bytes, needle: bytes) -> bool:
    """Tell whether an event comes after the last line that holds `needle`."""
    found = held.rfind(needle)
    end = held.find(b"\n", found)
    return found >= 0 and end >= 0 and held.find(b"{", end) >= 0


def _lines_from_the_end(held: bytes, needle: bytes) -> Iterator[bytes]:
    """Yield the data of the lines that hold `needle`, the last one first."""
    found = held.rfind(needle)
    while found >= 0:
        start = max(held.rfind(b"\n", 0, found), held.rfind(b"\r", 0, found)) + 1
        ends = [end for end in (held.find(b"\n", found), held.find(b"\r", found)) if end >= 0]
        line = held[start : min(ends, default=len(held))]
        if line.startswith(b"data:"):
            yield line[5:]
        found = held.rfind(needle, 0, start)


def decode_object(data: bytes) -> dict[str, object]:
    """Decode a JSON object of an upstream; empty for anything else."""
    try:
        value = _DECODE(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def text_bytes_of(value: object, keys: frozenset[str]) -> int:
    """Add up the UTF-8 bytes of all strings under `keys` in a decoded value, tool arguments as their JSON."""
    total = 0
    todo: list[object] = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo.extend(item)
        elif isinstance(item, dict):
            for key, inner in item.items():
                if isinstance(inner, str):
                    total += len(inner.encode()) if key in keys else 0
                elif key in _WHOLE_VALUES:
                    total += len(msgspec.json.encode(inner))
                else:
                    todo.append(inner)
    return total
