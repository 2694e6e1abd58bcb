"""A scripted upstream in the loop of the test: answers chat completions with a known usage, and keeps the tally."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web
from tests.faults.tally import Served, Tally

PLAY, SENT = "x-play", "x-sent-s"
"""The headers a caller scripts the answer with, and says when it was sent."""


class Play(msgspec.Struct, frozen=True):
    """How one request is to be answered: so many events, one every `gap_s`, and a usage at the end."""

    events: int = 2
    gap_s: float = 0.0
    input_tokens: int = 20
    output_tokens: int = 30

    def usage(self) -> dict[str, int]:
        """The usage as an answer reports it."""
        total = self.input_tokens + self.output_tokens
        return {"prompt_tokens": self.input_tokens, "completion_tokens": self.output_tokens, "total_tokens": total}


@contextlib.asynccontextmanager
async def upstream(tally: Tally) -> AsyncIterator[str]:
    """Runs the upstream on a free port; yields its URL."""

    async def answer(request: web.Request) -> web.StreamResponse:
        play = msgspec.json.decode(request.headers.get(PLAY, "{}"), type=Play)
        body = await request.json()
        served = Served(
            request.headers["x-llmweir-request-id"], request.headers["x-llmweir-user-id"],
            float(request.headers[SENT]), time.monotonic(), play.input_tokens, play.output_tokens,
        )  # fmt: skip
        tally.begin(served)
        try:
            response = await (_stream if body.get("stream") else _plain)(request, play)
            served.is_whole = True
        finally:
            served.ended_s = time.monotonic()
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        await web.SockSite(runner, listener).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await runner.cleanup()


async def _plain(request: web.Request, play: Play) -> web.StreamResponse:
    if play.gap_s:
        await asyncio.sleep(play.events * play.gap_s)
    message = {"role": "assistant", "content": "word " * play.events}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return web.json_response({"id": "c", "object": "chat.completion", "choices": choices, "usage": play.usage()})


async def _stream(request: web.Request, play: Play) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(play.events):
        await response.write(_event([{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]))
        await asyncio.sleep(play.gap_s)
    await response.write(_event([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    await response.write(_event([], usage=play.usage()) + b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _event(choices: list[dict[str, object]], **more: object) -> bytes:
    event = {"id": "c", "object": "chat.completion.chunk", "choices": choices, **more}
    return b"data: " + json.dumps(event).encode() + b"\n\n"
