"""Callers and an admin, over HTTP: what they asked, what they heard, and how long it took."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
from tests.faults.tally import MODEL
from tests.faults.upstream import PLAY, SENT, Play
from tests.faults.workers import MASTER_KEY, Worker

ADMIN = {"authorization": f"Bearer {MASTER_KEY}"}
CUT = 0
"""The status of an answer that never came, or broke off."""
_PATIENCE = aiohttp.ClientTimeout(total=45.0)
_AT_ONCE = Play()


class Heard(msgspec.Struct, frozen=True):
    """An answer as its caller got it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    took_s: float

    @property
    def code(self) -> str:
        """The code of a refusal; "" where there is none."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(self.body)["error"]["code"])
        return ""


class Caller(msgspec.Struct, frozen=True):
    """Somebody with an API key."""

    name: str
    key: str
    session: aiohttp.ClientSession

    async def chat(self, worker: Worker, play: Play = _AT_ONCE, *, stream: bool = False, max_tokens: int = 64) -> Heard:
        """Asks for a chat completion, and reads the answer to its end."""
        messages = [{"role": "user", "content": "what does a weir do?"}]
        body = {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "stream": stream}
        headers = {"authorization": f"Bearer {self.key}", PLAY: msgspec.json.encode(play).decode()}
        return await request(self.session, worker, "/v1/chat/completions", headers, body)

    async def list_models(self, worker: Worker) -> Heard:
        """Asks for something that counts nothing: the worker gets to know the key."""
        return await request(self.session, worker, "/v1/models", {"authorization": f"Bearer {self.key}"})


class Admin(msgspec.Struct, frozen=True):
    """Whoever has the master key."""

    session: aiohttp.ClientSession

    async def caller(self, worker: Worker, user_id: str, **limits: object) -> Caller:
        """Makes a user with an API key."""
        heard = await request(self.session, worker, "/user/new", ADMIN, {"user_id": user_id, **limits})
        assert heard.status == 200, heard.body
        return Caller(user_id, json.loads(heard.body)["key"], self.session)

    async def info(self, worker: Worker, user_id: str) -> dict[str, Any]:
        """The record of a user with its live usage."""
        heard = await self.get(worker, f"/user/info?user_id={user_id}")
        assert heard.status == 200, heard.body
        info: dict[str, Any] = json.loads(heard.body)["user_info"]
        return info

    async def get(self, worker: Worker, path: str) -> Heard:
        """Reads a page."""
        return await request(self.session, worker, path, ADMIN)

    async def post(self, worker: Worker, path: str, body: object) -> Heard:
        """Changes something."""
        return await request(self.session, worker, path, ADMIN, body)

    async def metric(self, worker: Worker, name: str) -> float:
        """The sum of the samples of a metric."""
        text = (await self.get(worker, "/metrics")).body.decode()
        assert f"# TYPE {name.removesuffix('_total')}" in text, f"{name} is no metric"
        samples = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rpartition(" ")[2]) for line in samples)

    async def is_ready(self, worker: Worker) -> bool:
        """Whether a worker says that it and its store are there."""
        return (await self.get(worker, "/health/readiness")).status == 200


async def request(
    session: aiohttp.ClientSession, worker: Worker, path: str, headers: Mapping[str, str], body: object = None
) -> Heard:
    """Sends a request, a POST if it has a body; an answer that breaks off is one with the status CUT."""
    began_s = time.monotonic()
    method = "GET" if body is None else "POST"
    headers = {**headers, SENT: repr(began_s)}
    try:
        async with session.request(method, worker.url + path, headers=headers, json=body, timeout=_PATIENCE) as answer:
            content = await answer.read()
            return Heard(answer.status, answer.headers, content, time.monotonic() - began_s)
    except aiohttp.ClientError as error:
        return Heard(CUT, {}, repr(error).encode(), time.monotonic() - began_s)
