"""Targets on the answer's side: usage, the text produced, event streams and the filter of their usage event."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from tests.fuzz.inputs import Input, Pairs, has_twice, loads, pieces
from tests.fuzz.requests import JSON_FORMATS

from llmweir.traffic.formats import UsageEventFilter
from llmweir.traffic.formats.base import Format, StreamOutcome
from llmweir.traffic.formats.multipart import TranscriptionFormat
from llmweir.traffic.sse import ServerSentEvent, SseDecoder
from llmweir.usage import Usage

_FORMATS: Final[tuple[Format, ...]] = (*JSON_FORMATS, TranscriptionFormat())
_MOST_TOKENS: Final = 4_000_000_000
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def answer(data: bytes) -> None:
    """Any answer has a usage that adds up, or none, and a text no longer than itself."""
    source = Input(data)
    format_, body = source.choice(_FORMATS), source.rest()
    usage = format_.usage(body)
    if usage is not None:
        check_usage(usage)
    assert 0 <= format_.produced_text_bytes(body) <= 6 * len(body)


def check_usage(usage: Usage) -> None:
    counts = msgspec.structs.asdict(usage)
    assert all(type(count) is int and 0 <= count <= _MOST_TOKENS for count in counts.values()), usage
    inside_input = (usage.cached_input_tokens, usage.cache_write_tokens, usage.input_audio_tokens)
    assert max(inside_input) <= usage.input_tokens, usage
    assert usage.cache_write_1h_tokens <= usage.cache_write_tokens, usage
    assert max(usage.reasoning_tokens, usage.output_audio_tokens) <= usage.output_tokens, usage


def stream(data: bytes) -> None:
    """A streamed answer comes to the same in any pieces."""
    source = Input(data)
    format_, how, body = source.choice(_FORMATS), source.byte(), source.rest()
    whole = _outcome(format_, [body])
    assert _outcome(format_, pieces(body, how)) == whole
    if whole.usage is not None:
        check_usage(whole.usage)
    assert 0 <= whole.produced_text_bytes <= 6 * len(body)


def _outcome(format_: Format, chunks: list[bytes]) -> StreamOutcome:
    reader = format_.stream_reader()
    for chunk in chunks:
        reader.feed(chunk)
    return reader.finish()


def events_of(chunks: list[bytes], max_event_bytes: int = 8 * 1024 * 1024) -> list[ServerSentEvent]:
    decoder = SseDecoder(max_event_bytes)
    events = [event for chunk in chunks for event in decoder.decode(chunk)]
    return events + decoder.flush()


def sse(data: bytes) -> None:
    """An event stream gives the same events in any pieces, those of the plain reading of the standard."""
    source = Input(data)
    how, body = source.byte(), source.rest()
    whole = events_of([body])
    assert events_of(pieces(body, how)) == whole
    assert [(event.event, event.data, event.id) for event in whole] == _plain_events(body)


def _plain_events(body: bytes) -> list[tuple[str, str, str]]:
    """Read a stream as the standard words it, the last event closed by the end."""
    found: list[tuple[str, str, str]] = []
    kind, last_id = "", ""
    values: list[str] = []
    text = body.removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in [*text.split(b"\n"), b""]:
        name, _, value_bytes = line.partition(b":")
        value = value_bytes.removeprefix(b" ").decode("utf-8", "replace")
        if not line:
            found += [(kind or "message", "\n".join(values), last_id)] if values else []
            kind, values = "", []
        elif name == b"data":
            values.append(value)
        elif name == b"event":
            kind = value
        elif name == b"id" and "\0" not in value:
            last_id = value
    return found


def sse_bounded(data: bytes) -> None:
    """With a bound on an event, what is left out are whole events: no piece of one is taken for another."""
    source = Input(data)
    how, most, body = source.byte(), 1 + source.byte() % 64, source.rest()
    all_events = iter([event.data for event in events_of([body])])
    for event in events_of(pieces(body, how), most):
        assert event.data in all_events, "an event that the stream does not have, or not there"


def usage_filter(data: bytes) -> None:
    """The filter gives the same bytes in any pieces, and all events but the one that carries the usage."""
    source = Input(data)
    how, body = source.byte(), source.rest()
    whole = filtered([body])
    assert filtered(pieces(body, how)) == whole
    if b'"usage"' not in body:
        assert whole == body
    if not body.startswith(_BYTE_ORDER_MARK) and _is_text(body):
        _check_events(body, whole)


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def filtered(chunks: list[bytes]) -> bytes:
    passing = UsageEventFilter()
    return b"".join([passing.filter(chunk) for chunk in chunks]) + passing.flush()


def _check_events(before: bytes, after: bytes) -> None:
    expected = [event for event in events_of([before]) if not _carries_usage(event)]
    left = events_of([after])
    assert [event.event for event in left] == [event.event for event in expected]
    for had, has in zip(expected, left, strict=True):
        value = _parsed(had.data)
        if value is not None and not has_twice(value):
            assert _stripped(_parsed(has.data)) == _stripped(value)


def _carries_usage(event: ServerSentEvent) -> bool:
    value = _parsed(event.data)
    if not isinstance(value, Pairs):
        return False
    members = dict(value)
    return members.get("choices") == [] and not isinstance(members["choices"], Pairs) and _is_full(members.get("usage"))


def _is_full(value: Any) -> bool:
    return isinstance(value, Pairs) and bool(value)


def _stripped(value: Any) -> Any:
    if isinstance(value, Pairs):
        return {name: _stripped(inner) for name, inner in value if name != "usage" or inner is not None}
    return [_stripped(inner) for inner in value] if isinstance(value, list) else value


def _parsed(text: str) -> Any:
    try:
        msgspec.json.decode(text)
        return loads(text.encode())
    except (ValueError, RecursionError):
        return None
