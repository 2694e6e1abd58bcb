"""Many changes at once, on two workers over one store: none is lost, none is torn, what is unique stays so."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import redis
from tests.admin.serving import ADMIN, api_of
from tests.backends import load_all_scripts, on_valkey

from llmweir.engine.keys import user_keys
from llmweir.engine.link import Link
from llmweir.engine.users import Users

pytestmark = pytest.mark.asyncio

AT_ONCE = 250


@dataclass(frozen=True)
class Workers:
    """Two admin APIs, each with a link of its own; calls go to them in turn."""

    turns: Iterable[httpx.AsyncClient]
    redis_url: str

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await next(iter(self.turns)).post(path, content=json.dumps(body).encode())

    async def done(self, path: str, **body: Any) -> Any:
        answer = await self.post(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def info(self, user_id: str) -> Any:
        answer = await next(iter(self.turns)).get("/user/info", params={"user_id": user_id})
        assert answer.status_code == 200, answer.text
        return answer.json()["user_info"]

    async def status(self, user_id: str) -> int:
        return (await next(iter(self.turns)).get("/user/info", params={"user_id": user_id})).status_code

    def raw(self, key: bytes) -> dict[bytes, bytes]:
        with redis.from_url(self.redis_url) as client:
            found: Any = client.hgetall(key)
        return dict(found)

    def names(self) -> list[bytes]:
        with redis.from_url(self.redis_url) as client:
            return sorted(client.scan_iter(count=10_000))


@pytest.fixture
async def workers(url: str) -> AsyncIterator[Workers]:
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            link = Link(url, timeout_ms=30_000)
            stack.push_async_callback(link.aclose)
            await load_all_scripts(link)
            transport = httpx.ASGITransport(api_of(Users(link), link).app())
            client = httpx.AsyncClient(transport=transport, base_url="http://gate", headers=ADMIN)
            clients.append(await stack.enter_async_context(client))
        yield Workers(itertools.cycle(clients), url)


async def at_once(calls: Iterable[Awaitable[Any]], most: int = AT_ONCE) -> list[Any]:
    """Runs calls, so many at a time."""
    turns = asyncio.Semaphore(most)

    async def run(call: Awaitable[Any]) -> Any:
        async with turns:
            return await call

    return await asyncio.gather(*map(run, calls))


@on_valkey
async def test_of_a_thousand_updates_of_one_user_none_is_lost_and_none_is_torn(workers: Workers) -> None:
    await workers.done("/user/new", user_id="ana", rpm_limit=0, tpm_limit=0, user_alias="0", max_budget=0, spend=0)
    version = int(workers.raw(user_keys("ana").record)[b"v"])

    def limits(number: int) -> Awaitable[Any]:
        """The same three fields, which are to agree ever after."""
        return workers.done("/user/update", user_id="ana", rpm_limit=number, tpm_limit=number, user_alias=f"{number}")

    def money(number: int) -> Awaitable[Any]:
        return workers.done("/user/update", user_id="ana", max_budget=number, spend=number, soft_budget=number)

    def team(number: int) -> Awaitable[Any]:
        return workers.done("/team/member_add", team_id=f"team-{number}", user_id="ana")

    async def look(number: int) -> None:
        shown = await workers.info("ana")
        assert shown["user_alias"] == str(shown["rpm_limit"]) == str(shown["tpm_limit"])
        assert shown["max_budget"] == shown["spend"]

    kinds = itertools.cycle((limits, money, limits, team, look))
    await at_once(next(kinds)(number) for number in range(1, 1_251))
    await look(0)
    shown = await workers.info("ana")
    assert sorted(shown["teams"]) == sorted(f"team-{number}" for number in range(4, 1_250, 5))
    record = workers.raw(user_keys("ana").record)
    assert int(record[b"v"]) == version + 1_000
    assert (int(record[b"rl"]), int(record[b"tl"])) == (shown["rpm_limit"], shown["tpm_limit"])
    assert int(record[b"b"]) == shown["max_budget"] * 10**9


FIELDS: dict[str, Any] = {
    "user_alias": "Ana", "max_budget": 1, "soft_budget": 0.5, "budget_duration": "30d", "models": ["gpt-*"],
    "rpm_limit": 1, "model_rpm_limit": {"o1": 1, "gpt-*": 2}, "metadata": {"desk": 4}, "blocked": True,
    "user_role": "customer",
}  # fmt: skip


@on_valkey
async def test_of_ten_thousand_updates_of_a_thousand_users_none_is_lost(workers: Workers) -> None:
    ids = [f"user-{number}" for number in range(1_000)]
    await at_once(workers.done("/user/new", user_id=user_id, auto_create_key=False) for user_id in ids)
    await at_once(
        workers.done("/user/update", user_id=user_id, **{name: value})
        for name, value in FIELDS.items()
        for user_id in ids
    )
    for shown in await at_once(workers.info(user_id) for user_id in ids):
        assert {name: shown[name] for name in FIELDS} == FIELDS


@on_valkey
async def test_of_updates_of_one_key_at_once_none_is_lost(workers: Workers) -> None:
    await workers.done("/user/new", user_id="ana", auto_create_key=False)
    key = (await workers.done("/key/generate", user_id="ana"))["key"]
    for number in range(30):
        blocked = number % 2 == 0
        changes: list[dict[str, Any]] = [
            {"rpm_limit": number},
            {"tpm_limit": number},
            {"metadata": {"n": number}},
            {"max_budget": number},
        ]
        calls = [workers.done("/key/update", key=key, **change) for change in changes]
        await asyncio.gather(*calls, workers.done(f"/key/{'block' if blocked else 'unblock'}", key=key))
        row = await workers.done("/key/update", key=key)
        assert {name: value for change in changes for name, value in change.items()}.items() <= row.items()
        assert row["blocked"] == blocked


@on_valkey
async def test_of_a_hundred_updates_of_one_field_of_a_key_one_holds_whole(workers: Workers) -> None:
    await workers.done("/user/new", user_id="ana", auto_create_key=False)
    key = (await workers.done("/key/generate", user_id="ana"))["key"]
    await at_once(
        workers.done("/key/update", key=key, rpm_limit=number, metadata={"n": number}, models=[f"model-{number}"])
        for number in range(100)
    )
    row = await workers.done("/key/update", key=key)
    assert (row["metadata"], row["models"]) == ({"n": row["rpm_limit"]}, [f"model-{row['rpm_limit']}"])


@on_valkey
async def test_a_key_blocked_while_it_is_made_anew_stays_blocked(workers: Workers) -> None:
    await workers.done("/user/new", user_id="ana", auto_create_key=False)
    for number in range(20):
        alias = f"key-{number}"
        key = (await workers.done("/key/generate", user_id="ana", key_alias=alias))["key"]
        anew, _ = await asyncio.gather(
            workers.done(f"/key/{key}/regenerate"), workers.done("/key/block", key_alias=alias)
        )
        row = await workers.done("/key/update", key=anew["key"])
        assert (row["blocked"], row["key_alias"]) == (True, alias)


@on_valkey
async def test_of_creates_with_one_email_at_once_one_succeeds(workers: Workers) -> None:
    for number in range(30):
        address = f"ana-{number}@example.org"
        ids = [f"user-{number}-{place}" for place in range(2 if number < 25 else 10)]
        answers = await asyncio.gather(
            *(workers.post("/user/new", user_id=user_id, user_email=address) for user_id in ids)
        )
        made = [user_id for user_id, answer in zip(ids, answers, strict=True) if answer.status_code == 200]
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * (len(ids) - 1)
        assert [user_id for user_id in ids if await workers.status(user_id) == 200] == made
        found = await workers.done("/user/update", user_email=address.upper(), rpm_limit=1)
        assert [found["user_id"]] == made


@on_valkey
async def test_of_creates_of_one_id_at_once_one_succeeds_whole(workers: Workers) -> None:
    for number in range(20):
        names = [f"{number}-{place}" for place in range(4)]
        bodies: list[dict[str, Any]] = [
            {"user_alias": name, "metadata": {"n": name}, "user_email": f"{name}@b.c"} for name in names
        ]
        calls = [workers.post("/user/new", user_id=f"user-{number}", **body) for body in bodies]
        answers = await asyncio.gather(*calls)
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
        [body] = [body for body, answer in zip(bodies, answers, strict=True) if answer.status_code == 200]
        assert body.items() <= (await workers.info(f"user-{number}")).items()
        for other in bodies:
            if other is not body:  # its address is free again
                await workers.done("/user/new", user_email=other["user_email"])


@on_valkey
async def test_of_keys_with_one_alias_made_at_once_one_is_made(workers: Workers) -> None:
    await workers.done("/user/new", user_id="ana", auto_create_key=False)
    for number in range(20):
        calls = [workers.post("/key/generate", user_id="ana", key_alias=f"key-{number}") for _ in range(4)]
        assert sorted(answer.status_code for answer in await asyncio.gather(*calls)) == [200, 409, 409, 409]
        assert len(await workers.info("ana") and await keys_of(workers, "ana")) == number + 1


async def keys_of(workers: Workers, user_id: str) -> list[Any]:
    answer = await next(iter(workers.turns)).get("/user/info", params={"user_id": user_id})
    keys: list[Any] = answer.json()["keys"]
    return keys


@on_valkey
async def test_an_update_against_a_delete_leaves_a_whole_user_or_none(workers: Workers) -> None:
    for number in range(30):
        user_id = f"user-{number}"
        await workers.done("/user/new", user_id=user_id, user_email=f"{number}@b.c", key_alias=f"key-{number}")
        updates = [
            workers.post("/user/update", user_id=user_id, rpm_limit=1),
            workers.post("/user/update", user_id=user_id, user_email=f"{number}-anew@b.c"),
            workers.post("/user/update", user_id=user_id, teams=["red"]),
            workers.post("/key/generate", user_id=user_id, key_alias=f"key-{number}-too"),
            workers.post("/key/block", key_alias=f"key-{number}"),
            workers.post("/user/block", user_ids=[user_id]),
        ]
        at = number % (len(updates) + 1)
        calls = [*updates[:at], workers.post("/user/delete", user_ids=[user_id]), *updates[at:]]
        answers = await asyncio.gather(*calls)
        assert answers[at].text == "1"
        assert {answer.status_code for answer in answers} <= {200, 404}, [answer.text for answer in answers]
        assert await workers.status(user_id) == 404
    assert [name for name in workers.names() if name.startswith(b"lw:{u:")] == []
    # A claim that a change made while its user was deleted may be left, but keeps nobody from the name.
    for number in range(30):
        await workers.done("/user/new", user_id=f"user-{number}", user_email=f"{number}@b.c", key_alias=f"key-{number}")
        await workers.done("/user/new", user_email=f"{number}-anew@b.c", key_alias=f"key-{number}-too")
