from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmweir.traffic.sse import ServerSentEvent, SseDecoder


def decode_all(stream: bytes, max_event_bytes: int = 1000) -> list[ServerSentEvent]:
    decoder = SseDecoder(max_event_bytes)
    return decoder.decode(stream) + decoder.flush()


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        pytest.param(b"data: a\n\n", [ServerSentEvent("a")], id="one event"),
        pytest.param(b"data:a\ndata: b\n\n", [ServerSentEvent("a\nb")], id="data lines are joined by LF"),
        pytest.param(b"data:  a\n\n", [ServerSentEvent(" a")], id="only one space is dropped"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [ServerSentEvent("a")], id="a byte order mark is dropped"),
        pytest.param(b": hello\n\ndata: a\n\n", [ServerSentEvent("a")], id="comments are passed over"),
        pytest.param(b"event: x\n\ndata: a\n\n", [ServerSentEvent("a")], id="an event without data is none"),
        pytest.param(b"event: x\ndata: a\n\n", [ServerSentEvent("a", "x")], id="a type of its own"),
        pytest.param(
            b"id: 7\ndata: a\n\ndata: b\n\n",
            [ServerSentEvent("a", id="7"), ServerSentEvent("b", id="7")],
            id="an id stays",
        ),
        pytest.param(b"id: 7\0\ndata: a\n\n", [ServerSentEvent("a")], id="an id with NUL is none"),
        pytest.param(b"retry: 30\ndata: a\n\n", [ServerSentEvent("a", retry_ms=30)], id="a retry time"),
        pytest.param(b"retry: 3s\ndata: a\n\n", [ServerSentEvent("a")], id="a retry time of other than digits"),
        pytest.param(b"data\n\n", [ServerSentEvent("")], id="a field without colon is empty"),
        pytest.param(b"data: a", [ServerSentEvent("a")], id="an unclosed event counts at the end"),
        pytest.param(b"data: \xff\n\n", [ServerSentEvent("\ufffd")], id="bytes that are not UTF-8 are replaced"),
        pytest.param(b"data: " + b"x" * 2000 + b"\n\ndata: b\n\n", [ServerSentEvent("b")], id="too long at once"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_a_stream_is_read_by_the_rules(stream: bytes, expected: list[ServerSentEvent]) -> None:
    decoder = SseDecoder(1000)
    events = [event for byte in stream for event in decoder.decode(bytes([byte]))] + decoder.flush()
    assert events == expected


@given(st.lists(st.integers(0, 60)), st.sampled_from([b"\n", b"\r", b"\r\n"]))
def test_neither_cuts_nor_line_ends_change_the_events(cuts: list[int], end: bytes) -> None:
    stream = b"event: e\ndata: a\n\n: c\n\ndata: b\ndata: c\n\nid: 1\ndata: d\n\n".replace(b"\n", end)
    decoder = SseDecoder()
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    events = [e for one, two in pairwise(edges) for e in decoder.decode(stream[one:two])]
    events += decoder.flush()
    assert [(e.data, e.event, e.id) for e in events] == [("a", "e", ""), ("b\nc", "message", ""), ("d", "message", "1")]


def test_an_event_beyond_the_limit_is_skipped_when_it_comes_in_pieces() -> None:
    decoder = SseDecoder(10)
    events = [event for _ in range(5) for event in decoder.decode(b"data: xxxx")]
    events += decoder.decode(b"\ndata: y\n\ndata: z\n\n")
    assert [event.data for event in events] == ["z"]


def test_many_short_events_are_not_taken_for_one_long_one() -> None:
    assert len(decode_all(b"data: 12345\n\n" * 100, 2000)) == 100
    decoder = SseDecoder(50)
    assert sum(len(decoder.decode(b"data: 12345\n\n")) for _ in range(100)) == 100
