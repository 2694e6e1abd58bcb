"""Bodies: bounded in bytes and time, and played back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from llmweir.errors import UnreadableRequestError
from llmweir.traffic.asgi import Message
from llmweir.traffic.body import BodyReader, ClientLeftError, Replay

LEFT: Message = {"type": "http.disconnect"}


def received(*messages: Message) -> Callable[[], Awaitable[Message]]:
    """A `receive` that gives these messages, and then waits for ever."""
    waiting = list(messages)

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    return receive


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


WHOLE: dict[str, tuple[list[Message], bytes]] = {
    "one message": ([part(b"abc", more=False)], b"abc"),
    "as long as is allowed": ([part(b"x" * 10, more=False)], b"x" * 10),
    "a message without members": ([{"type": "http.request"}], b""),
    "several messages": ([part(b"ab"), part(b""), part(b"cd"), part(b"e", more=False)], b"abcde"),
    "several, as long as is allowed": ([part(b"x" * 5), part(b"x" * 5), part(b"", more=False)], b"x" * 10),
    "the last without a body": ([part(b"ab"), {"type": "http.request"}], b"ab"),
}


@pytest.mark.parametrize(("messages", "body"), WHOLE.values(), ids=WHOLE)
async def test_a_body_is_put_together(messages: list[Message], body: bytes) -> None:
    assert await BodyReader(10, 5).read(received(*messages), -1) == body


async def test_a_body_declared_empty_is_not_waited_for() -> None:
    assert await BodyReader(10, 5).read(received(), 0) == b""


TOO_LARGE: dict[str, tuple[list[Message], int]] = {
    "declared": ([], 11),
    "in one message": ([part(b"x" * 11, more=False)], -1),
    "in several": ([part(b"x" * 6), part(b"x" * 5), part(b"never read")], -1),
    "more than declared": ([part(b"x" * 6), part(b"x" * 6)], 3),
    "the first already": ([part(b"x" * 11), part(b"never read")], -1),
}


@pytest.mark.parametrize(("messages", "declared_bytes"), TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_body_that_is_too_large_is_refused_as_soon_as_that_is_known(
    messages: list[Message], declared_bytes: int
) -> None:
    with pytest.raises(UnreadableRequestError) as raised:
        await BodyReader(10, 5).read(received(*messages), declared_bytes)
    assert (raised.value.status, raised.value.code) == (413, "body_too_large")


@pytest.mark.parametrize("messages", [[LEFT], [part(b"ab"), LEFT]], ids=["at once", "in the middle"])
async def test_a_client_that_leaves_while_it_sends_is_nobody_to_answer(messages: list[Message]) -> None:
    with pytest.raises(ClientLeftError):
        await BodyReader(10, 5).read(received(*messages), -1)


@pytest.mark.parametrize("messages", [[], [part(b"ab")]], ids=["nothing came", "some came"])
async def test_a_body_that_does_not_arrive_in_time_is_refused(messages: list[Message]) -> None:
    reader = BodyReader(10, 0.02)
    with pytest.raises(UnreadableRequestError) as raised:
        await reader.read(received(*messages), -1)
    assert (raised.value.status, raised.value.code) == (408, "body_timeout")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_one_clock_serves_many_bodies_and_each_has_its_own_time() -> None:
    reader = BodyReader(10, 0.04)

    async def late() -> str:
        with pytest.raises(UnreadableRequestError) as raised:
            await reader.read(received(), -1)
        return raised.value.code

    async def in_time(after_s: float) -> bytes:
        arrival = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(after_s, arrival.set_result, part(b"ok", more=False))

        async def receive() -> Message:
            message: Message = await arrival
            return message

        return await reader.read(receive, -1)

    codes, bodies = await asyncio.gather(asyncio.gather(late(), late()), asyncio.gather(in_time(0.0), in_time(0.01)))
    assert list(codes) == ["body_timeout", "body_timeout"]
    assert list(bodies) == [b"ok", b"ok"]
    assert await late() == "body_timeout"


async def test_a_cancellation_from_outside_stays_one() -> None:
    reading = asyncio.create_task(BodyReader(10, 5).read(received(), -1))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_body_is_played_back_once_and_then_comes_what_really_comes() -> None:
    replay = Replay(b"abc", received(LEFT))
    assert await replay() == {"type": "http.request", "body": b"abc", "more_body": False}
    assert await replay() == LEFT
