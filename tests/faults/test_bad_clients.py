"""What a client can do wrong, to a real `llmweir serve`: what it is answered, what it costs, what it holds up."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest
from tests.faults.raw_sockets import (
    GOOD,
    GOOD_NANOS,
    GOOD_TOKENS,
    INPUT_NANOS,
    LAST_CHUNK,
    OUTPUT_NANOS,
    PATIENCE_S,
    STREAM_HEAD,
    Account,
    Client,
    Gate,
    Peer,
    RawUpstream,
    chat,
    chunk,
    good,
    post,
    serving,
    until,
    words,
)
from tests.servers import valkey_server

from llmweir.traffic.formats.openai import OpenAIFormat

BODY_TIMEOUT_S = 1
LEASE_TTL_S = 3
MAX_BODY_BYTES = 4 << 20
MAX_HEADER_BYTES = 20_000
HELD_OUTPUT_TOKENS = 1024
MIB = 1 << 20


@dataclass(frozen=True)
class Stage:
    """A gate, and the upstream behind it."""

    gate: Gate
    upstream: RawUpstream

    async def user(self, **limits: object) -> tuple[str, str]:
        """A new user and a key of theirs."""
        name = f"user-{next(numbers)}"
        return name, await self.gate.books.user(name, **{"max_budget": 1000, "tpm_limit": 10**9} | limits)

    async def is_well(self) -> None:
        """Serves somebody else at once."""
        self.upstream.play(good)
        name, key = await self.user()
        async with asyncio.timeout(5):
            assert (await self.gate.ask(post(key, chat()))).status == 200
        assert await self.gate.books.settled(name) == Account(1, GOOD_TOKENS, GOOD_NANOS)


numbers = count()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    flags = {
        "body-timeout-s": BODY_TIMEOUT_S,
        "max-body-bytes": MAX_BODY_BYTES,
        "max-header-bytes": MAX_HEADER_BYTES,
        "lease-ttl-s": LEASE_TTL_S,
        "lease-renew-s": 1,
    }
    given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    with (
        valkey_server() as redis_url,
        RawUpstream(good) as upstream,
        serving(upstream.port, redis_url, tmp_path_factory.mktemp("gate"), *given) as gate,
    ):
        yield Stage(gate, upstream)


@pytest.fixture(autouse=True)
def _upstream_is_good(stage: Stage) -> None:
    stage.upstream.play(good)


def held(body: bytes) -> Account:
    """What one request costs that is charged as it was held."""
    tokens = estimate(body)
    nanos = tokens * INPUT_NANOS + HELD_OUTPUT_TOKENS * OUTPUT_NANOS
    return Account(1, tokens + HELD_OUTPUT_TOKENS, nanos)


def estimate(body: bytes) -> int:
    """The input tokens held for a request to a model of which nothing is known yet."""
    return OpenAIFormat("chat").facts(body, b"application/json", None).text_bytes // 4 + 1


async def say_nothing(peer: Peer) -> bool:
    await peer.request()
    await peer.gone()
    return False


CHUNKED = "transfer-encoding: chunked"


# What is sent too slowly.


async def drip(client: Client, sent: bytes, whole_bytes: int, pieces: int) -> None:
    """Sends some bytes at once and then a few at a time."""
    client.send(sent[:whole_bytes])
    for piece in range(pieces):
        await asyncio.sleep(0.05)
        client.send(sent[whole_bytes + piece : whole_bytes + piece + 1])


@pytest.mark.faults
async def test_a_slow_head_or_body_is_cut_in_time_and_nothing_of_it_is_admitted(stage: Stage) -> None:
    name, key = await stage.user()
    body = chat(content="x" * 1000)
    cases = {
        "a head": (post(key, body), 5),
        "a body": (post(key, body), 300),
        "a body that stops": (post(key, body)[:-1], 10**9),
        "chunks": (post(key, chunk(body), CHUNKED, length=False), 300),
        "a chunk that stops": (post(key, b"5\r\n{", CHUNKED, length=False), 10**9),
    }

    async def status(sent: bytes, whole_bytes: int) -> int:
        async with stage.gate.connected() as client:
            dripping = asyncio.create_task(drip(client, sent, whole_bytes, 100))
            try:
                return (await client.rest()).status
            finally:
                dripping.cancel()

    started_s = time.monotonic()
    statuses = await asyncio.gather(*(status(*case) for case in cases.values()))
    assert dict(zip(cases, statuses, strict=True)) == dict.fromkeys(cases, 408)
    assert BODY_TIMEOUT_S <= time.monotonic() - started_s < 8 * BODY_TIMEOUT_S
    assert stage.upstream.heads == []
    assert await stage.gate.books.settled(name) == Account(0, 0, 0)
    await stage.is_well()


@pytest.mark.faults
async def test_slow_bodies_hold_no_more_memory_than_they_may_and_leave_none_behind(stage: Stage) -> None:
    name, key = await stage.user()
    clients = 20

    async def most_memory_bytes() -> int:
        async with contextlib.AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(stage.gate.connected()) for _ in range(clients)]
            for client in opened:
                client.send(post(key, b"x" * MAX_BODY_BYTES)[:-1])
            answers = asyncio.gather(*(client.rest() for client in opened))
            most = 0
            while not answers.done():
                most = max(most, stage.gate.memory_bytes())
                await asyncio.sleep(0.01)
            assert {answer.status for answer in await answers} == {408}
            return most

    before = stage.gate.memory_bytes()
    first = await most_memory_bytes()
    assert first - before < clients * MAX_BODY_BYTES * 1.5
    assert await most_memory_bytes() - first < clients * MAX_BODY_BYTES * 0.25
    assert await stage.gate.books.settled(name) == Account(0, 0, 0)
    await stage.is_well()


# What has no end.


async def pour(client: Client, piece: bytes, most_bytes: int) -> int:
    """Sends a piece again and again until the gate closes or enough was sent; returns how much was."""
    sent_bytes = 0
    with contextlib.suppress(ConnectionError):
        while sent_bytes < most_bytes and not client.writer.transport.is_closing():
            client.send(piece)
            sent_bytes += len(piece)
            await client.writer.drain()
    return sent_bytes


PIECE = b"y" * 50_000
ENDLESS: dict[str, tuple[bytes, bytes, str]] = {
    "a header": (b"GET / HTTP/1.1\r\nx: ", PIECE, "<key>"),
    "headers": (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 5000, "<key>"),
    "a target": (b"GET /", PIECE, "<key>"),
    "a trailer": (b"1\r\n{\r\n0\r\nx: ", PIECE, "<key>"),
    "trailers": (b"1\r\n{\r\n0\r\n", b"a: b\r\n" * 5000, "<key>"),
    "a chunk's extension": (b"1;x=", PIECE, "<key>"),
    "a chunk's size": (b"", b"0" * 50_000, "<key>"),
    "a trailer, of nobody": (b"1\r\n{\r\n0\r\nx: ", PIECE, "sk-nobody"),
}


@pytest.mark.parametrize(("start", "piece", "key"), ENDLESS.values(), ids=ENDLESS)
async def test_what_frames_a_request_is_cut_once_it_is_too_long(
    stage: Stage, start: bytes, piece: bytes, key: str
) -> None:
    name, own_key = await stage.user()
    if not start.startswith(b"GET"):
        start = post(key.replace("<key>", own_key), start, CHUNKED, length=False)
    before = stage.gate.memory_bytes()
    async with stage.gate.connected() as client:
        client.send(start)
        sent_bytes = await pour(client, piece, 200 * MIB)
    assert sent_bytes < 20 * MIB
    assert stage.gate.memory_bytes() - before < 30 * MIB
    assert stage.upstream.heads == []
    assert await stage.gate.books.settled(name) == Account(0, 0, 0)
    await stage.is_well()


@pytest.mark.parametrize("framing", ["a length", "chunks"])
async def test_a_body_without_end_is_refused_at_its_bound(stage: Stage, framing: str) -> None:
    name, key = await stage.user()
    start = post(key, b"", close=False) if framing == "a length" else post(key, b"", CHUNKED, close=False, length=False)
    start = start.replace(b"content-length: 0", b"content-length: 1" + b"0" * 17)
    before = stage.gate.memory_bytes()
    async with stage.gate.connected() as client:
        client.send(start)
        pouring = asyncio.create_task(pour(client, chunk(PIECE) if framing == "chunks" else PIECE, 50 * MIB))
        head = await client.read_until(b"\r\n\r\n")
        assert b" 413 " in head
        await asyncio.wait_for(pouring, PATIENCE_S)
    assert stage.gate.memory_bytes() - before < 30 * MIB
    assert await stage.gate.books.settled(name) == Account(0, 0, 0)
    await stage.is_well()


HEADERS: dict[str, tuple[list[str], int]] = {
    "as many as may be": ([f"x-{number}: y" for number in range(250)], 200),
    "too many": ([f"x-{number}: y" for number in range(257)], 431),
    "far too many": (["x: y"] * 4000, 431),
    "as large as may be": (["x: " + "y" * (MAX_HEADER_BYTES - 1000)], 200),
    "too large": (["x: " + "y" * MAX_HEADER_BYTES], 431),
    "far too large": (["x: " + "y" * 1_000_000], 431),
}


@pytest.mark.parametrize(("headers", "status"), HEADERS.values(), ids=HEADERS)
async def test_too_many_headers_or_bytes_of_them_are_431(stage: Stage, headers: list[str], status: int) -> None:
    name, key = await stage.user()
    assert (await stage.gate.ask(post(key, chat(), *headers))).status == status
    counted = Account(1, GOOD_TOKENS, GOOD_NANOS) if status == 200 else Account(0, 0, 0)
    assert await stage.gate.books.settled(name) == counted
    await stage.is_well()


# What may be read as two requests.


def smuggled(key: str) -> bytes:
    return post(key, chat(), close=False)


FRAMES: dict[str, tuple[tuple[str, ...], bytes, int]] = {
    "two lengths": (("content-length: 5", "content-length: 6"), b"12345", 400),
    "two lengths alike": (("content-length: 5", "content-length: 5"), b"12345", 400),
    "lengths in a list": (("content-length: 5, 5",), b"12345", 400),
    "a length and chunks": (("content-length: 5", CHUNKED), b"0\r\n\r\n", 400),
    "chunks and a length": ((CHUNKED, "content-length: 5"), b"0\r\n\r\n", 400),
    "chunks twice": ((CHUNKED, CHUNKED), b"0\r\n\r\n", 400),
    "chunks that are not last": (("transfer-encoding: chunked, identity",), b"0\r\n\r\n", 400),
    "chunks in a disguise": (("transfer-encoding: \x0bchunked",), b"0\r\n\r\n", 400),
    "chunks behind a space": (("transfer-encoding : chunked",), b"0\r\n\r\n", 400),
    "a coding made up": (("transfer-encoding: chunky",), b"0\r\n\r\n", 400),
    "a length below nothing": (("content-length: -1",), b"", 400),
    "a length with a sign": (("content-length: +5",), b"12345", 400),
    "a length in hex": (("content-length: 0x5",), b"12345", 400),
    "a length of 10^18": (("content-length: 1" + "0" * 18,), b"12345", 413),
    "a length of 2^64": ((f"content-length: {2**64}",), b"12345", 400),
    "a length of 10^5000": (("content-length: 1" + "0" * 5000,), b"12345", 400),
    "a chunk's size that is no number": ((CHUNKED,), b"five\r\n12345\r\n0\r\n\r\n", 400),
    "a chunk's size below nothing": ((CHUNKED,), b"-5\r\n12345\r\n0\r\n\r\n", 400),
    "a chunk's size of 2^64": ((CHUNKED,), b"1" + b"0" * 16 + b"\r\n12345\r\n0\r\n\r\n", 400),
    "a chunk longer than its size": ((CHUNKED,), b"2\r\n12345\r\n0\r\n\r\n", 400),
    "a chunk that ends in garbage": ((CHUNKED,), b"5\r\n12345XX0\r\n\r\n", 400),
    "chunks that end in a bare line feed": ((CHUNKED,), b"5\n12345\n0\n\n", 400),
    "a header with a bare line feed": (("content-length: 5", "x: y\nz: 0"), b"12345", 400),
    "a header with a NUL": (("content-length: 5", "x: \0"), b"12345", 400),
}  # fmt: skip


@pytest.mark.parametrize(("headers", "body", "status"), FRAMES.values(), ids=FRAMES)
async def test_a_body_that_may_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(
    stage: Stage, headers: tuple[str, ...], body: bytes, status: int
) -> None:
    name, key = await stage.user()
    sent = post(key, body, *headers, length=False) + smuggled(key)
    received = await stage.gate.ask(sent)
    assert (received.status, received.raw.count(b"HTTP/1.1 ")) == (status, 1), received
    assert stage.upstream.heads == []
    assert await stage.gate.books.settled(name) == Account(0, 0, 0)
    await stage.is_well()


async def test_a_client_that_waits_for_100_continue_gets_it_unless_its_body_is_too_large(stage: Stage) -> None:
    name, key = await stage.user()
    body = chat()
    expects = post(key, body, "expect: 100-continue").removesuffix(body)
    async with stage.gate.connected() as client:
        client.send(expects)
        assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert (await client.rest()).status == 200
    refused = await stage.gate.ask(expects.replace(b"content-length: ", b"content-length: 9999999"))
    assert (refused.status, refused.raw.count(b"HTTP/1.1 ")) == (413, 1)
    assert await stage.gate.books.settled(name) == Account(1, GOOD_TOKENS, GOOD_NANOS)


async def test_headers_behind_a_chunked_body_are_not_taken_for_those_before_it(stage: Stage) -> None:
    name, key = await stage.user()
    behind = b"0\r\nauthorization: Bearer x\r\nx-trailer: yes\r\nx-llmweir-user-id: root\r\n\r\n"
    received = await stage.gate.ask(post(key, chunk(chat()) + behind, CHUNKED, "x: 1", "x: 2", length=False))
    assert received.status == 200
    assert b"x-trailer" not in stage.upstream.heads[0]
    assert f"x-llmweir-user-id: {name}".encode() in stage.upstream.heads[0].lower()
    assert await stage.gate.books.settled(name) == Account(1, GOOD_TOKENS, GOOD_NANOS)


# Many requests on one connection, and many connections.


async def test_pipelined_requests_are_answered_in_order_and_each_is_counted(stage: Stage) -> None:
    name, key = await stage.user()
    requests = [post(key, chat(content=str(number)), close=number == 9) for number in range(10)]
    received = await stage.gate.ask(b"".join(requests))
    assert received.raw.count(b"HTTP/1.1 200 OK") == 10
    assert await stage.gate.books.settled(name) == Account(10, 10 * GOOD_TOKENS, 10 * GOOD_NANOS)


@pytest.mark.parametrize("how", ["resets", "leaves"])
async def test_a_client_that_leaves_with_requests_in_the_pipe_ends_the_one_that_runs(stage: Stage, how: str) -> None:
    name, key = await stage.user()
    stage.upstream.play(say_nothing)
    async with stage.gate.connected() as client:
        client.send(post(key, chat("a-slow-model"), close=False) + post(key, chat(), close=False) * 5)
        await until(lambda: stage.gate.books.slots(name) == 1)
        await until(lambda: len(stage.upstream.heads) == 1)
        client.reset() if how == "resets" else client.leave()
        assert await stage.gate.books.settled(name) == held(chat("a-slow-model"))
    assert len(stage.upstream.heads) == 1
    await stage.is_well()


@pytest.mark.parametrize("key", ["sk-nobody", "<key>"])
async def test_a_client_that_asks_much_and_reads_nothing_holds_no_memory(stage: Stage, key: str) -> None:
    _, own_key = await stage.user()
    many = post(key.replace("<key>", own_key), chat(), close=False) * 1000
    before = stage.gate.memory_bytes()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(50):
            client = await stack.enter_async_context(stage.gate.connected())
            client.send(many)
        await stage.is_well()
        assert stage.gate.memory_bytes() - before < 50 * MIB


# Clients that go away, or half of them.


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_client_that_ends_its_own_side_gets_its_answer(stage: Stage, stream: bool) -> None:
    name, key = await stage.user()
    go = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def wait(peer: Peer) -> bool:
        await until(lambda: may_answer)
        return await good(peer)

    may_answer = False
    stage.upstream.play(wait)
    async with stage.gate.connected() as client:
        client.send(post(key, chat(stream=stream)))
        client.writer.write_eof()
        await until(lambda: stage.gate.books.slots(name) == 1)
        loop.call_later(0.3, go.set)
        await go.wait()
        may_answer = True
        received = await client.rest()
    assert received.status == 200
    assert b"hello there" in received.raw
    assert received.raw.endswith(LAST_CHUNK if stream else GOOD.partition(b"\r\n\r\n")[2])
    assert await stage.gate.books.settled(name) == Account(1, GOOD_TOKENS, GOOD_NANOS)


@pytest.mark.parametrize("how", ["resets", "leaves"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_client_that_goes_before_its_answer_pays_what_was_held_and_ends_the_upstreams_call(
    stage: Stage, how: str, stream: bool
) -> None:
    name, key = await stage.user(max_parallel_requests=1)
    stage.upstream.play(say_nothing)
    body = chat(f"model-of-{name}", stream=stream)
    async with stage.gate.connected() as client:
        client.send(post(key, body))
        await until(lambda: len(stage.upstream.heads) == 1)
        client.reset() if how == "resets" else client.leave()
        await until(lambda: stage.gate.books.slots(name) == 0, patience_s=5)
    assert await stage.gate.books.settled(name) == held(body)
    await stage.is_well()


@pytest.mark.parametrize("part", ["head", "body", "chunk"])
async def test_a_client_that_resets_while_it_asks_costs_nothing(stage: Stage, part: str) -> None:
    name, key = await stage.user()
    whole = post(key, chunk(chat()), CHUNKED, length=False) if part == "chunk" else post(key, chat())
    async with stage.gate.connected() as client:
        client.send(whole[:40] if part == "head" else whole[:-20])
        await asyncio.sleep(0.03)
        client.reset()
    await stage.is_well()
    assert await stage.gate.books.settled(name) == Account(0, 0, 0)


TEXT = "sixteen bytes..." * 64
TEXT_TOKENS = 16 * 64 // 4


@pytest.mark.parametrize("how", ["resets", "leaves"])
async def test_a_client_that_goes_in_the_middle_of_a_stream_pays_for_what_was_produced(stage: Stage, how: str) -> None:
    name, key = await stage.user(max_parallel_requests=1)

    async def start(peer: Peer) -> bool:
        await peer.request()
        await peer.say(STREAM_HEAD, chunk(words(TEXT)))
        await peer.gone()
        return False

    stage.upstream.play(start)
    body = chat(f"model-of-{name}", stream=True)
    async with stage.gate.connected() as client:
        client.send(post(key, body))
        await client.read_until(TEXT.encode())
        client.reset() if how == "resets" else client.leave()
        await until(lambda: stage.gate.books.slots(name) == 0, patience_s=5)
    tokens = estimate(body)
    charged = Account(1, tokens + TEXT_TOKENS, tokens * INPUT_NANOS + TEXT_TOKENS * OUTPUT_NANOS)
    assert await stage.gate.books.settled(name) == charged
    await until(lambda: stage.upstream.open <= 1)
    await stage.is_well()


@pytest.mark.faults
async def test_who_does_not_read_stalls_the_upstream_keeps_the_slot_and_settles_once_gone(stage: Stage) -> None:
    name, key = await stage.user(max_parallel_requests=1)
    stage.upstream.sent_bytes = 0
    event = chunk(words("x" * 65_536))

    async def flood(peer: Peer) -> bool:
        await peer.request()
        await peer.say(STREAM_HEAD)
        while peer.upstream.sent_bytes < 200 * MIB:
            await peer.say(event)
            peer.upstream.sent_bytes += len(event)
        return False

    stage.upstream.play(flood)
    body = chat(f"model-of-{name}", stream=True)
    before = stage.gate.memory_bytes()
    async with stage.gate.connected() as client:
        client.send(post(key, body))
        await client.read_until(b"xxxx")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a transport of a socket
        await until(lambda: stage.upstream.sent_bytes > MIB)
        stalled_until_s = time.monotonic() + 2.5 * LEASE_TTL_S
        while time.monotonic() < stalled_until_s:
            assert stage.gate.memory_bytes() - before < 40 * MIB
            assert stage.gate.books.slots(name) == 1
            await asyncio.sleep(0.05)
        assert stage.upstream.sent_bytes < 60 * MIB
        refused = await stage.gate.ask(post(key, chat()))
        assert refused.status == 429
        client.reset()
        account = await stage.gate.books.settled(name)
    input_tokens = estimate(body)
    output_tokens = account.tokens - input_tokens
    assert MIB // 4 < output_tokens <= stage.upstream.sent_bytes // 4
    assert account == Account(1, account.tokens, input_tokens * INPUT_NANOS + output_tokens * OUTPUT_NANOS)
    await stage.is_well()


# Floods.


MANY_KEYS, LANES = 50_000, 50


@pytest.mark.faults
async def test_50000_unknown_keys_cost_one_look_each_little_memory_and_hold_nobody_up(stage: Stage) -> None:
    name, key = await stage.user()
    books = stage.gate.books
    assert (await stage.gate.ask(post(key, chat()))).status == 200

    async def lane(number: int) -> None:
        async with stage.gate.connected() as client:
            for batch in range(number * MANY_KEYS // LANES, (number + 1) * MANY_KEYS // LANES, 10):
                client.send(b"".join(post(f"sk-{secret}", b"", close=False) for secret in range(batch, batch + 10)))
                for _ in range(10):
                    head = await client.read_until(b"\r\n\r\n")
                    assert b" 401 " in head
                    await client.reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))

    async def known() -> list[float]:
        waits_s = []
        while not flood.done():
            started_s = time.monotonic()
            assert (await stage.gate.ask(post(key, chat()))).status == 200
            waits_s.append(time.monotonic() - started_s)
            await asyncio.sleep(0.02)
        return waits_s

    looks, scripts, before = books.calls("get"), books.calls("evalsha"), stage.gate.memory_bytes()
    flood = asyncio.gather(*(lane(number) for number in range(LANES)))
    waits_s = await known()
    await flood
    assert MANY_KEYS <= books.calls("get") - looks <= MANY_KEYS + 10
    assert books.calls("evalsha") - scripts <= 2 * len(waits_s) + 20
    assert stage.gate.memory_bytes() - before < 40 * MIB
    assert len(waits_s) > 10
    assert sorted(waits_s)[len(waits_s) * 9 // 10] < 2
    served = len(waits_s) + 1
    assert await books.settled(name) == Account(served, served * GOOD_TOKENS, served * GOOD_NANOS)


async def test_one_unknown_key_many_times_at_once_is_looked_up_about_once_a_second(stage: Stage) -> None:
    sent = post("sk-the-same", b"", close=False) * 10 + post("sk-the-same", b"")
    looks, started_s = stage.gate.books.calls("get"), time.monotonic()
    for _ in range(10):
        answers = await asyncio.gather(*(stage.gate.ask(sent) for _ in range(10)))
        assert {answer.raw.count(b"HTTP/1.1 401 ") for answer in answers} == {11}
    seconds = time.monotonic() - started_s
    assert stage.gate.books.calls("get") - looks <= 10 * (seconds + 1)


IDLE_CONNECTIONS = 10_000
MOST_BYTES_A_CONNECTION = 16 * 1024


@pytest.mark.faults
@pytest.mark.timeout(180)
async def test_10000_idle_connections_hold_little_memory_and_hold_nobody_up(
    stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE_CONNECTIONS + 500:
        pytest.skip(f"this system lets a process hold {hard} connections, not {IDLE_CONNECTIONS}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:  # as most systems start a program
        with serving(stage.upstream.port, redis_of(stage), tmp_path_factory.mktemp("idle")) as gate:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            await hold_idle_connections(stage, gate)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def redis_of(stage: Stage) -> str:
    return stage.gate.books.redis_url


async def hold_idle_connections(stage: Stage, gate: Gate) -> None:
    name, key = await stage.user()
    assert (await gate.ask(post(key, chat()))).status == 200
    before = gate.memory_bytes()
    idle: list[socket.socket] = []
    try:
        for number in range(IDLE_CONNECTIONS):
            idle.append(socket.create_connection(("127.0.0.1", gate.port), timeout=PATIENCE_S))
            if number % 100 == 99:
                assert (await gate.ask(post(key, chat()))).status == 200
        assert (gate.memory_bytes() - before) / IDLE_CONNECTIONS < MOST_BYTES_A_CONNECTION
        for _ in range(20):
            started_s = time.monotonic()
            assert (await gate.ask(post(key, chat()))).status == 200
            assert time.monotonic() - started_s < 3
    finally:
        for connection in idle:
            connection.close()
    requests = 1 + IDLE_CONNECTIONS // 100 + 20
    assert await gate.books.settled(name) == Account(requests, requests * GOOD_TOKENS, requests * GOOD_NANOS)


@dataclass
class Streams:
    """An upstream that streams without end, and counts the calls that nobody has given up."""

    most: int = 0
    calls: int = 0
    _open: set[Peer] = field(default_factory=set)

    async def __call__(self, peer: Peer) -> bool:
        await peer.request()
        self.calls += 1
        self._open = {other for other in self._open if not other.is_given_up()}
        self._open.add(peer)
        self.most = max(self.most, len(self._open))
        await peer.say(STREAM_HEAD, chunk(words(TEXT)))
        await peer.gone()
        self._open.discard(peer)
        return False

    def running(self) -> int:
        """How many calls nobody has given up."""
        return len(self._open)


@pytest.mark.faults
async def test_streams_opened_and_dropped_without_end_never_pass_the_limit_and_are_all_paid(stage: Stage) -> None:
    name, key = await stage.user(max_parallel_requests=2)
    streams = Streams()
    stage.upstream.play(streams)
    # Words are estimated alike only for a model that never says what it used.
    body = chat(f"model-of-{name}", stream=True)
    served = refused = 0
    until_s = time.monotonic() + 3

    async def drop() -> None:
        nonlocal served, refused
        while time.monotonic() < until_s:
            async with stage.gate.connected() as client:
                client.send(post(key, body))
                head = await client.read_until(b"\r\n\r\n")
                if b" 200 " in head:
                    await client.read_until(TEXT.encode())
                    served += 1
                else:
                    assert b" 429 " in head
                    refused += 1
                client.reset() if served % 2 else client.leave()

    await asyncio.gather(*(drop() for _ in range(6)))
    assert served > 5
    assert refused > 0
    assert streams.most == 2
    assert streams.calls == served
    input_tokens = estimate(body)
    nanos = input_tokens * INPUT_NANOS + TEXT_TOKENS * OUTPUT_NANOS
    charged = Account(served, served * (input_tokens + TEXT_TOKENS), served * nanos)
    assert await stage.gate.books.settled(name) == charged
    await until(lambda: not streams.running())
    await stage.is_well()
