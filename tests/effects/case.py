"""One user, or one key, whose field is set on one gate and looked at on the other."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
from tests.effects.gates import ADMIN, Weirs
from tests.harness import PATIENCE_S, eventually

FREE = "200"
_numbers = itertools.count(1)


@dataclass
class Case:
    """A user with a key, on two gates: `here` is where a change is made, `there` where it is looked at."""

    weirs: Weirs
    is_of_key: bool = False
    user_id: str = field(default_factory=lambda: f"user-{next(_numbers)}")
    key: str = ""
    answer: httpx.Response = field(default_factory=lambda: httpx.Response(200, json={}))
    """What the last change was answered with."""
    mails_before: int = 0

    @property
    def here(self) -> httpx.AsyncClient:
        return self.weirs.gates[0]

    @property
    def there(self) -> httpx.AsyncClient:
        return self.weirs.gates[1]

    def turn(self) -> None:
        """Swaps the gates."""
        one, two = self.weirs.gates
        self.weirs = Weirs((two, one), self.weirs.around, self.weirs.redis_url)

    async def make(self, **fields: Any) -> None:
        """Makes the user; the fields are the user's, or the key's where the case is of a key."""
        self.mails_before = len(self.weirs.around.inbox.mails)
        of_user, of_key = ({}, fields) if self.is_of_key else (fields, {})
        made = await self._post("/user/new", {"user_id": self.user_id, **of_user})
        self.key = made["key"]
        if self.is_of_key:
            self.key = (await self._post("/key/generate", {"user_id": self.user_id, **of_key}))["key"]

    async def change(self, **fields: Any) -> dict[str, Any]:
        """Changes the user, or the key, on the gate that is here, and returns its row."""
        self.mails_before = len(self.weirs.around.inbox.mails)
        if self.is_of_key:
            row: dict[str, Any] = await self._post("/key/update", {"key": self.key, **fields})
        else:
            row = (await self._post("/user/update", {"user_id": self.user_id, **fields}))["data"]
        return row

    async def row(self) -> dict[str, Any]:
        """The record, or the key's row, as the other gate reads it."""
        path, query, member = "/user/info", {"user_id": self.user_id}, "user_info"
        if self.is_of_key:
            path, query, member = "/key/info", {"key": self.key}, "info"
        answer = await self.there.get(path, params=query, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()[member]
        return found

    async def ask(self, path: str, **body: Any) -> int:
        """The status with which the other gate answers an admin's call."""
        return (await self.there.post(path, json=body, headers=ADMIN)).status_code

    async def chat(
        self, gate: httpx.AsyncClient | None = None, *, key: str | None = None, hold: str = "", **body: Any
    ) -> httpx.Response:
        """Asks a model, on the other gate unless told where."""
        content = {"model": "gpt-4o", "max_tokens": 30, "messages": [{"role": "user", "content": "hi"}], **body}
        headers = {"authorization": f"Bearer {self.key if key is None else key}", **({"x-hold": hold} if hold else {})}
        return await (gate or self.there).post("/v1/chat/completions", json=content, headers=headers)

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        self.answer = await self.here.post(path, json=body, headers=ADMIN)
        assert self.answer.status_code == 200, self.answer.text
        return self.answer.json()


Look = Callable[[Case], Awaitable[Any]]


def outcome(answer: httpx.Response) -> str:
    """An answer of the data plane in words: "200", or "429 tokens rate_limit_exceeded"."""
    if answer.status_code == 200:
        return FREE
    error = answer.json()["error"]
    return f"{answer.status_code} {error['type']} {error['code']}"


async def asked(case: Case) -> str:
    """What the next request comes to."""
    return outcome(await case.chat())


async def second(case: Case) -> str:
    """What a request comes to after one on the gate where the change was made."""
    await case.chat(case.here)
    return outcome(await case.chat())


async def second_of_each(case: Case) -> list[str]:
    """The same for a model that has a limit of its own, and for another."""
    found = []
    for model in ("gpt-4o", "gpt-4o-mini"):
        await case.chat(case.here, model=model)
        found.append(outcome(await case.chat(model=model)))
    return found


async def beside_a_running_one(case: Case, look: Callable[[Case], Awaitable[Any]] = asked) -> Any:
    """What a request comes to (or what else is looked at) while another runs on the gate where the change was made."""
    name, around = f"{case.user_id}-{next(_numbers)}", case.weirs.around
    around.held[name] = asyncio.Event()
    running = asyncio.create_task(case.chat(case.here, hold=name))
    await eventually(lambda: name in around.running)
    found = await look(case)
    around.held[name].set()
    assert (await running).status_code == 200
    return found


async def once_it_ends(case: Case, ends: str | None, until: str) -> str:
    """What a request comes to: at once where nothing ends, else once it comes to `until`, and that not too early."""
    found = await asked(case)
    if ends is None:
        return found
    deadline = time.monotonic() + PATIENCE_S
    while found != until:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)
        found = await asked(case)
    assert datetime.now().astimezone() >= datetime.fromisoformat(ends)
    return found


def upstream_saw(header: str) -> Look:
    """The value of a header as the upstream got it with the next request, or None."""

    async def look(case: Case) -> str | None:
        value: str | None = (await case.chat()).json()["seen"]["headers"].get(header)
        return value

    return look


def reads(name: str) -> Look:
    """The field as the other gate reads it."""

    async def look(case: Case) -> object:
        return (await case.row())[name]

    return look
