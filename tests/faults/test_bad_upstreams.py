"""What an upstream can do wrong to a real `llmweir serve`: what the caller sees, what is charged, what is left."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from tests.faults.raw_sockets import (
    DONE,
    GOOD,
    GOOD_NANOS,
    GOOD_STREAM,
    GOOD_TOKENS,
    INPUT_NANOS,
    LAST_CHUNK,
    OUTPUT_NANOS,
    STREAM_HEAD,
    USAGE,
    Account,
    Gate,
    Peer,
    RawUpstream,
    Received,
    Script,
    answer,
    chat,
    chunk,
    event,
    good,
    plain,
    post,
    serving,
    stream,
    until,
    usage_event,
    words,
)
from tests.servers import valkey_server

from llmweir.traffic.formats.openai import OpenAIFormat

TIMEOUT_S = 1
BAD_GATEWAY, TIMED_OUT = 502, 504


@dataclass(frozen=True)
class Stage:
    """A gate, and the upstream behind it."""

    gate: Gate
    upstream: RawUpstream


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with (
        valkey_server() as redis_url,
        RawUpstream(good) as upstream,
        serving(
            upstream.port, redis_url, tmp_path_factory.mktemp("gate"), "--upstream-timeout-s", str(TIMEOUT_S)
        ) as gate,
    ):
        yield Stage(gate, upstream)


def once(*parts: bytes) -> Script:
    """Answers with these bytes, and is ready for the next request."""

    async def script(peer: Peer) -> bool:
        await peer.request()
        await peer.say(*parts)
        return True

    return script


def cut(*parts: bytes, resets: bool = False) -> Script:
    """Answers with these bytes and ends the connection."""

    async def script(peer: Peer) -> bool:
        await peer.request()
        await peer.say(*parts)
        if resets:
            peer.reset()
        return False

    return script


def hang(*parts: bytes) -> Script:
    """Answers with these bytes and says no more."""

    async def script(peer: Peer) -> bool:
        await peer.request()
        await peer.say(*parts)
        await peer.gone()
        return False

    return script


async def reset_at_once(peer: Peer) -> bool:
    peer.reset()
    return False


HELLO = "hello there"  # 11 bytes: 3 tokens at four bytes each
HELLO_TOKENS = 3
SOME = (words("hello "), words("there"))
NO_INPUT_KNOWN = -1


@dataclass(frozen=True)
class Row:
    """One fault: what the upstream does, what the caller sees, and the tokens that are charged for it.

    `input` of NO_INPUT_KNOWN is the estimate that was held, `parts` all of the body that the caller must see.
    """

    script: Script
    status: int = 200
    is_whole: bool = True
    input: int = 0
    output: int = 0
    streams: bool = False
    body: bytes | None = None


def failed(script: Script, status: int, **more: Any) -> Row:
    """A row that costs nothing."""
    return Row(script, status, **more)


def estimated(script: Script, output: int = HELLO_TOKENS, **more: Any) -> Row:
    """A row that is charged what was held for its input, and the text that was delivered."""
    return Row(script, input=NO_INPUT_KNOWN, output=output, **more)


def reported(script: Script, **more: Any) -> Row:
    """A row that is charged what the upstream says."""
    return Row(script, input=20, output=30, **more)


def said(usage: Any) -> Row:
    """A plain answer with this usage, which is taken for none."""
    return estimated(once(plain(answer(usage))))


def told(usage: Any) -> Row:
    """A stream with this usage, which is taken for none."""
    raw = usage if isinstance(usage, bytes) else json.dumps(usage).encode()
    last = b'data: {"choices":[],"usage":' + raw + b"}\n\n"
    return estimated(once(stream(*SOME, last, DONE)), streams=True)


def usage_of(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


ABSURD: dict[str, Any] = {
    "is null": None,
    "is a list": [20, 30],
    "is a string": "20 and 30",
    "is empty": {},
    "is negative": usage_of(-20, -30),
    "is negative in one": usage_of(20, -(10**18)),
    "is 10^18": usage_of(10**18, 10**18),
    "is 10^18 in all": usage_of(20, 30, total_tokens=10**18),
    "is a billion": usage_of(20, 10**9),
    "is beyond 2^53": usage_of(2**53 + 1, 30),
    "is beyond 2^64": usage_of(20, 2**70),
    "has floats": usage_of(20.5, 30.5),
    "has floats that are whole": usage_of(20.0, 30.0),
    "has strings": usage_of("20", "30"),
    "has booleans": usage_of(True, False),
    "is nested": usage_of({"tokens": 20}, [30]),
    "has absurd details": usage_of(20, 30, prompt_tokens_details={"cached_tokens": -(10**18)}),
}
NAN = b'{"prompt_tokens":NaN,"completion_tokens":Infinity}'
NAN_ANSWER = b'{"choices":[],"usage":' + NAN + b"}"
TWO_IN_ONE = (
    b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1},"usage":' + json.dumps(USAGE).encode() + b"}"
)
DELTA = {"index": 0, "delta": {"content": "a"}}
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"
TOO_MANY = {"x-ratelimit-limit-requests": "7", "retry-after": "3", "anthropic-ratelimit-tokens-limit": "7"}

HEADS: dict[str, Row] = {
    "it hangs up without a word": failed(cut(), BAD_GATEWAY),
    "it resets the connection": failed(reset_at_once, BAD_GATEWAY),
    "it says what is no HTTP": failed(cut(b"SSH-2.0-OpenSSH_9.6\r\n"), BAD_GATEWAY),
    "it breaks off in its head": failed(cut(b"HTTP/1.1 200 OK\r\ncontent-ty"), BAD_GATEWAY),
    "its head is endless": failed(once(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000), BAD_GATEWAY),
    "it has a status of its own": failed(once(b"HTTP/1.1 99 What\r\n\r\n"), BAD_GATEWAY),
    "it switches protocols": failed(
        once(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), BAD_GATEWAY
    ),
    "its length is no number": failed(once(plain(answer(), headers={"content-length": "many"})), BAD_GATEWAY),
    "it has two lengths": failed(
        once(GOOD.replace(b"content-type", b"content-length: 5\r\ncontent-type")), BAD_GATEWAY
    ),
    "an error": failed(once(plain({"error": {}}, "500 Internal Server Error", TOO_MANY)), 500),
    "a refusal of its own": failed(once(plain({"error": {}}, "429 Too Many Requests", TOO_MANY)), 429),
    "an error to a stream": failed(once(plain({"error": {}}, "503 Unavailable", TOO_MANY)), 503, streams=True),
    "an error that has usage": failed(once(plain(answer(), "400 Bad Request")), 400),
    "an error without an end": failed(
        cut(b"HTTP/1.1 500 X\r\ncontent-length: 100\r\n\r\n{"), 500, is_whole=False
    ),
    "a redirect": failed(
        once(plain(b"", "307 Temporary Redirect", {"location": "http://127.0.0.1:1/"})), 307, body=b""
    ),
    "interim answers first": reported(once(EARLY_HINTS * 3, b"HTTP/1.1 100 Continue\r\n\r\n", GOOD)),
    "no content type": reported(once(plain(answer(), headers={"content-type": ""}))),
    "HTTP/1.0": reported(cut(GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"))),
    "HTTP/1.0 that ends with the connection": reported(
        cut(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + json.dumps(answer()).encode())
    ),
}  # fmt: skip
BODIES: dict[str, Row] = {
    "shorter than declared": failed(
        cut(plain(answer(), headers={"content-length": "5000"})), BAD_GATEWAY
    ),
    "longer than declared": failed(once(plain(b"{}" + b"x" * 99, headers={"content-length": "2"})), BAD_GATEWAY),
    "it cuts a plain answer": failed(
        cut(STREAM_HEAD.replace(b"text/event-stream", b"application/json"), chunk(b'{"a":')),
        BAD_GATEWAY,
    ),
    "no usage": estimated(once(plain(answer(...)))),
    **{f"usage {name}": said(usage) for name, usage in ABSURD.items()},
    "usage is NaN": estimated(once(plain(NAN_ANSWER)), output=-(-len(NAN_ANSWER) // 4)),
    "usage comes twice": reported(once(plain(TWO_IN_ONE))),
    "gzip": reported(once(plain(gzip.compress(json.dumps(answer()).encode()), headers={"content-encoding": "gzip"}))),
    "a coding nobody knows": Row(
        once(plain(b"\x0b\x02", headers={"content-encoding": "br"})), input=NO_INPUT_KNOWN, output=1024
    ),
    "broken UTF-8": estimated(once(plain(b'{"choices":"\xff\xfe"}')), output=4),
    "trailers": reported(
        once(STREAM_HEAD.replace(b"text/event-stream", b"application/json")
             + chunk(json.dumps(answer()).encode()) + b"0\r\nx-checksum: 5\r\nx-llmweir-cost-usd: 99\r\n\r\n")
    ),
}  # fmt: skip
STREAMS: dict[str, Row] = {
    "it cuts it": estimated(cut(STREAM_HEAD, *map(chunk, SOME)), is_whole=False),
    "it resets it": estimated(cut(STREAM_HEAD, *map(chunk, SOME), resets=True), is_whole=False),
    "it cuts it within a chunk": estimated(cut(STREAM_HEAD, *map(chunk, SOME), b"ff\r\ndata: "), is_whole=False),
    "it cuts it after the usage": reported(
        cut(STREAM_HEAD, *map(chunk, (*SOME, usage_event(USAGE)))), is_whole=False
    ),
    "it cuts it before a word": estimated(cut(STREAM_HEAD), output=0, is_whole=False),
    "its length is too long": estimated(
        cut(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n", *SOME),
        is_whole=False,
    ),
    "its events are garbage": estimated(
        once(stream(b"\x00\xff garbage\n\n", b"data: {{{\n\n", b"data\n\n: \n\n")), output=0
    ),
    "garbage among its events": estimated(once(stream(SOME[0], b"data: {]\n\nfoo: bar\n\n", SOME[1], DONE))),
    "broken UTF-8 in its text": estimated(
        once(stream(event(b'{"choices":[{"delta":{"content":"\xff\xfe\xfd"}}]}'), *SOME, DONE)), output=5
    ),
    "no usage": estimated(once(stream(*SOME, DONE))),
    **{f"usage {name}": told(usage) for name, usage in ABSURD.items()},
    "usage is NaN": told(NAN),
    "usage comes twice": reported(once(stream(*SOME, usage_event(usage_of(1, 1)), usage_event(USAGE), DONE))),
    "usage comes twice, the last absurd": reported(
        once(stream(*SOME, usage_event(USAGE), usage_event(usage_of(10**18, 1)), DONE))
    ),
    "usage comes in the middle": Row(
        once(stream(usage_event(usage_of(20, 1)), words("x" * 400), DONE)), input=20, output=100
    ),
    "usage comes with every event": reported(
        once(stream(*(event({"choices": [DELTA], "usage": usage_of(20, n)}) for n in range(31)), DONE))
    ),
    "no end is said": reported(once(stream(*SOME, usage_event(USAGE)))),
    "nothing is said": estimated(once(stream()), output=0),
    "gzip": reported(
        once(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"),
             chunk(gzip.compress(b"".join((*SOME, usage_event(USAGE), DONE)))), LAST_CHUNK)
    ),
    "gzip that is cut": estimated(
        cut(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"),
             chunk(gzip.compress(b"".join(SOME)))), is_whole=False
    ),
    "a coding nobody knows": Row(
        once(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: br\r\n\r\n"), chunk(b"\x0b\x02"), LAST_CHUNK),
        input=NO_INPUT_KNOWN, output=1024,
    ),
    "HTTP/1.0 that ends with the connection": reported(
        cut(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", *SOME, usage_event(USAGE), DONE)
    ),
    "trailers": reported(
        once(GOOD_STREAM.removesuffix(LAST_CHUNK) + b"0\r\nx-llmweir-cost-usd: 99\r\n\r\n")
    ),
}  # fmt: skip
ROWS = {
    **{f"head: {name}": row for name, row in HEADS.items()},
    **{f"body: {name}": row for name, row in BODIES.items()},
    **{f"stream: {name}": Row(**{**vars(row), "streams": True}) for name, row in STREAMS.items()},
}
SLOW_ROWS = {
    "it hangs before its head": failed(hang(), TIMED_OUT),
    "it hangs in its head": failed(hang(b"HTTP/1.1 200 OK\r\n"), TIMED_OUT),
    "it says interim answers for ever": failed(hang(EARLY_HINTS), TIMED_OUT),
    "it hangs in a plain answer": failed(
        once(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"), BAD_GATEWAY
    ),
    "it hangs in a stream": estimated(
        hang(STREAM_HEAD, *map(chunk, SOME)), is_whole=False, streams=True
    ),
}  # fmt: skip


numbers = count()


async def play(stage: Stage, row: Row) -> Received:
    """Plays a row to a new user and checks the books; then the same user asks again, with one slot, and is served."""
    user = f"user-{next(numbers)}"
    body = chat(f"model-of-{user}", stream=row.streams)
    key = await stage.gate.books.user(user, max_parallel_requests=1, max_budget=100, tpm_limit=10**6)
    stage.upstream.play(row.script)
    received = await stage.gate.ask(post(key, body))
    assert (received.status, received.is_whole) == (row.status, row.is_whole), received
    assert len(stage.upstream.heads) == (1 if row.script is not reset_at_once else 0)
    input_tokens = estimate(body) if row.input == NO_INPUT_KNOWN else row.input
    tokens, nanos = input_tokens + row.output, input_tokens * INPUT_NANOS + row.output * OUTPUT_NANOS
    assert await stage.gate.books.settled(user) == Account(1, tokens, nanos)
    stage.upstream.play(good)
    again = await stage.gate.ask(post(key, chat(f"another-model-of-{user}")))
    assert (again.status, again.body) == (200, GOOD.partition(b"\r\n\r\n")[2])
    assert await stage.gate.books.settled(user) == Account(2, tokens + GOOD_TOKENS, nanos + GOOD_NANOS)
    return received


def estimate(body: bytes) -> int:
    """The input tokens held for a request to a model of which nothing is known yet."""
    return OpenAIFormat("chat").facts(body, b"application/json", None).text_bytes // 4 + 1


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_a_fault_of_the_upstream_is_charged_for_what_it_delivered_and_the_next_request_works(
    stage: Stage, row: Row
) -> None:
    received = await play(stage, row)
    if row.body is not None:
        assert received.body == row.body


@pytest.mark.faults
@pytest.mark.parametrize("row", SLOW_ROWS.values(), ids=SLOW_ROWS)
async def test_an_upstream_that_falls_silent_is_given_up_in_time(stage: Stage, row: Row) -> None:
    await play(stage, row)
    await until(lambda: stage.upstream.open <= 1)


async def new_user(stage: Stage, **limits: Any) -> tuple[str, str]:
    user = f"user-{next(numbers)}"
    return user, await stage.gate.books.user(user, max_budget=100, tpm_limit=10**9, **limits)


@pytest.mark.parametrize("streams", [False, True], ids=["plain", "streamed"])
async def test_an_upstream_that_is_away_is_502_costs_nothing_and_may_come_back(stage: Stage, streams: bool) -> None:
    user, key = await new_user(stage, max_parallel_requests=1)
    stage.upstream.play(good)
    await stage.upstream.refuse()
    try:
        refused = await stage.gate.ask(post(key, chat(stream=streams)))
    finally:
        await stage.upstream.listen()
    assert (refused.status, refused.json()["error"]["code"]) == (BAD_GATEWAY, "upstream_unavailable")
    assert await stage.gate.books.settled(user) == Account(1, 0, 0)
    assert (await stage.gate.ask(post(key, chat(stream=streams)))).status == 200
    assert await stage.gate.books.settled(user) == Account(2, GOOD_TOKENS, GOOD_NANOS)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "500 Internal Server Error", "200 OK"])
async def test_the_limits_of_the_upstreams_own_account_are_replaced_by_the_callers(stage: Stage, status: str) -> None:
    _, key = await new_user(stage, rpm_limit=9)
    own = TOO_MANY | {"x-ratelimit-remaining-tokens": "7", "ratelimit": '"a";r=7', "x-llmweir-cost-usd": "7"}
    stage.upstream.play(once(plain({}, status, own)))
    received = await stage.gate.ask(post(key, chat("a-model-unheard-of")))
    assert received.status == int(status[:3])
    assert received.header("x-ratelimit-limit-requests") == ["9"]
    assert received.header("x-ratelimit-remaining-requests") == ["8"]
    assert len(received.header("x-ratelimit-remaining-tokens")) == len(received.header("ratelimit")) == 1
    assert received.header("anthropic-ratelimit-tokens-limit") == []
    assert "7" not in received.header("x-llmweir-cost-usd")
    assert received.header("retry-after") == ["3"]


async def test_a_redirect_is_passed_on_and_never_followed(stage: Stage) -> None:
    _, key = await new_user(stage)
    there = f"http://127.0.0.1:{stage.upstream.port}/elsewhere"
    stage.upstream.play(once(plain(b"", "308 Permanent Redirect", {"location": there})))
    received = await stage.gate.ask(post(key, chat()))
    assert (received.status, received.header("location")) == (308, [there])
    assert len(stage.upstream.heads) == 1


async def test_trailers_of_an_answer_end_here(stage: Stage) -> None:
    _, key = await new_user(stage)
    stage.upstream.play(once(GOOD_STREAM.removesuffix(LAST_CHUNK) + b"0\r\nx-trailer: 1\r\n\r\n"))
    received = await stage.gate.ask(post(key, chat(stream=True)))
    assert (received.is_whole, b"x-trailer" in received.raw) == (True, False)


async def test_an_answer_that_comes_before_the_body_was_read_is_passed_on_and_the_connection_given_up(
    stage: Stage,
) -> None:
    user, key = await new_user(stage)

    async def in_a_hurry(peer: Peer) -> bool:
        await peer.head()
        await peer.say(GOOD)
        await peer.gone()
        return False

    stage.upstream.play(in_a_hurry)
    assert (await stage.gate.ask(post(key, chat(content="x" * (8 << 20))))).status == 200
    assert await stage.gate.books.settled(user) == Account(1, GOOD_TOKENS, GOOD_NANOS)
    stage.upstream.play(good)
    assert (await stage.gate.ask(post(key, chat()))).status == 200
    await until(lambda: stage.upstream.open <= 1)


async def warm_up(stage: Stage, key: str) -> None:
    """Leaves one idle connection to the upstream, and no other."""
    await stage.upstream.refuse()
    await until(lambda: stage.upstream.open == 0)
    await stage.upstream.listen()
    stage.upstream.play(good)
    assert (await stage.gate.ask(post(key, chat()))).status == 200
    assert stage.upstream.open == 1


async def test_a_connection_that_ended_while_it_was_idle_is_replaced_without_a_trace(stage: Stage) -> None:
    user, key = await new_user(stage)
    for times in range(1, 4):
        await warm_up(stage, key)
        await stage.upstream.refuse()
        await stage.upstream.listen()
        before = stage.upstream.connections
        assert (await stage.gate.ask(post(key, chat()))).status == 200
        assert (stage.upstream.connections - before, len(stage.upstream.heads)) == (1, 2)
        counted = Account(2 * times, 2 * times * GOOD_TOKENS, 2 * times * GOOD_NANOS)
        assert await stage.gate.books.settled(user) == counted


@pytest.mark.parametrize("resets", [False, True], ids=["closed", "reset"])
async def test_a_request_that_a_kept_connection_took_with_it_is_502_and_never_made_twice(
    stage: Stage, resets: bool
) -> None:
    user, key = await new_user(stage)
    await warm_up(stage, key)
    stage.upstream.play(cut(resets=resets))
    received = await stage.gate.ask(post(key, chat()))
    assert (received.status, len(stage.upstream.heads)) == (BAD_GATEWAY, 1)
    assert await stage.gate.books.settled(user) == Account(2, GOOD_TOKENS, GOOD_NANOS)


async def test_an_answer_that_nobody_asked_for_reaches_nobody(stage: Stage) -> None:
    user, key = await new_user(stage)
    surplus = plain(answer(content="somebody else's secret"))
    may_go_on, has_said = threading.Event(), threading.Event()

    async def twice(peer: Peer) -> bool:
        await peer.request()
        await peer.say(GOOD)
        await until(may_go_on.is_set)
        await peer.say(surplus)
        has_said.set()
        return True

    stage.upstream.play(twice)
    assert (await stage.gate.ask(post(key, chat()))).status == 200
    may_go_on.set()
    await until(has_said.is_set)
    stage.upstream.play(good)
    received = await stage.gate.ask(post(key, chat()))
    assert (received.status, b"secret" in received.raw) == (200, False)
    assert await stage.gate.books.settled(user) == Account(2, 2 * GOOD_TOKENS, 2 * GOOD_NANOS)


@pytest.mark.parametrize("end", [b"zz\r\nx\r\n", b"-1\r\n", b"5\r\n1234567\r\n"])
async def test_a_stream_whose_chunks_turn_to_garbage_is_cut_and_what_came_before_is_charged(
    stage: Stage, end: bytes
) -> None:
    user, key = await new_user(stage)
    may_go_on = threading.Event()

    async def turn(peer: Peer) -> bool:
        await peer.request()
        await peer.say(STREAM_HEAD, *map(chunk, SOME))
        await until(may_go_on.is_set)
        await peer.say(end)
        await peer.gone()
        return False

    stage.upstream.play(turn)
    body = chat(f"model-of-{user}", stream=True)
    async with stage.gate.connected() as client:
        client.send(post(key, body))
        await client.read_until(b"there")
        may_go_on.set()
        rest = await client.rest()
    assert not rest.raw.endswith(LAST_CHUNK)
    tokens = estimate(body)
    charged = Account(1, tokens + HELLO_TOKENS, tokens * INPUT_NANOS + HELLO_TOKENS * OUTPUT_NANOS)
    assert await stage.gate.books.settled(user) == charged


MIB = 1 << 20


@pytest.mark.faults
@pytest.mark.parametrize("streams", [False, True], ids=["plain", "streamed"])
async def test_one_line_without_end_passes_through_in_little_memory(stage: Stage, streams: bool) -> None:
    """200 MiB in one line: an event that is never over, or a plain answer too large to be read."""
    user, key = await new_user(stage)
    piece, pieces = b"x" * MIB, 200
    kind = b"text/event-stream" if streams else b"application/json"
    start = b'data: {"choices":[{"delta":{"content":"' if streams else b'{"choices":"'

    async def flood(peer: Peer) -> bool:
        await peer.request()
        await peer.say(STREAM_HEAD.replace(b"text/event-stream", kind), chunk(start))
        for _ in range(pieces):
            await peer.say(chunk(piece))
        await peer.say(LAST_CHUNK)
        return True

    stage.upstream.play(flood)
    body = chat(f"model-of-{user}", stream=streams)
    before, most, received_bytes = stage.gate.memory_bytes(), 0, 0
    async with stage.gate.connected() as client:
        client.send(post(key, body))
        while part := await client.reader.read(MIB):
            received_bytes += len(part)
            most = max(most, stage.gate.memory_bytes() - before)
    assert received_bytes > pieces * MIB
    assert most < 100 * MIB
    tokens, output_tokens = estimate(body), 0 if streams else 1024
    nanos = tokens * INPUT_NANOS + output_tokens * OUTPUT_NANOS
    assert await stage.gate.books.settled(user) == Account(1, tokens + output_tokens, nanos)
    stage.upstream.play(good)
    assert (await stage.gate.ask(post(key, chat()))).status == 200
