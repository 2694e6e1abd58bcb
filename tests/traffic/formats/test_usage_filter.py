from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmweir.traffic.formats import UsageEventFilter

CHUNK = {"id": "c", "choices": [{"index": 0, "delta": {"content": 'say "usage":null, \\"usage\\"'}}]}
LAST = {"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}


def event(value: object, spaced: bool) -> bytes:
    return b"data: " + json.dumps(value, separators=None if spaced else (",", ":")).encode() + b"\n\n"


def run(stream: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    usage_filter = UsageEventFilter()
    passed = [usage_filter.filter(stream[one:two]) for one, two in pairwise(edges)]
    return b"".join(passed) + usage_filter.flush()


@given(st.lists(st.integers(0, 900), max_size=40), st.sampled_from([b"\n", b"\r", b"\r\n"]), st.booleans())
def test_the_caller_gets_exactly_the_bytes_of_a_stream_without_usage(cuts: list[int], end: bytes, spaced: bool) -> None:
    tail = b": comment\n\ndata: [DONE]\n\n"
    asked = event({**CHUNK, "usage": None}, spaced) * 3 + event({"usage": None, **CHUNK}, spaced) + event(LAST, spaced)
    unasked = event(CHUNK, spaced) * 4
    assert run((asked + tail).replace(b"\n", end), cuts) == (unasked + tail).replace(b"\n", end)


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(event({"choices": [], "prompt_filter_results": []}, False), id="Azure's first event"),
        pytest.param(event({**CHUNK, "usage": {"prompt_tokens": 1}}, False), id="usage on an event with choices"),
        pytest.param(b'data: {"usage" broken\n\n', id="not JSON"),
        pytest.param(b'data: {"usage": 7, "choices": []}\n\n', id="usage a number"),
        pytest.param(b'data: {"error":{"message":"\xff"},"usage":{}}\n\n', id="not UTF-8"),
        pytest.param(b'data: {"a":1}', id="cut off"),
        pytest.param(b"", id="empty"),
    ],
)
def test_what_was_not_added_passes(stream: bytes) -> None:
    assert run(stream, []) == stream
    assert run(stream, [5, 9]) == stream


def test_whole_events_pass_at_once_and_only_the_rest_is_held() -> None:
    usage_filter = UsageEventFilter()
    first, second = event(CHUNK, False), event({**CHUNK, "usage": None}, False)
    assert usage_filter.filter(first) == first
    assert usage_filter.filter(first + second[:20]) == first
    assert usage_filter.filter(second[20:]) == first


def test_an_endless_event_is_not_held() -> None:
    usage_filter = UsageEventFilter()
    piece = b"x" * 700_000
    assert usage_filter.filter(piece) == b""
    assert usage_filter.filter(piece) == piece * 2
