"""The admin API over ASGI: what each call answers, and how each wrong one is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import redis
from tests.backends import on_valkey

from llmweir.admin.app import MAX_BODY_BYTES, AdminApi
from llmweir.engine.link import Link
from llmweir.engine.users import Users
from llmweir.errors import StoreUnavailableError
from llmweir.traffic.identify import HeadReader

pytestmark = pytest.mark.asyncio

MASTER = "sk-master"
ADMIN = {"authorization": f"Bearer {MASTER}"}


def client_of(users: Users, link: Link, master_key: str | None = MASTER, prefix: str = "") -> httpx.AsyncClient:
    heads = HeadReader()
    api = AdminApi(
        users,
        read_key=lambda headers: heads.read(headers).api_key,
        master_key=master_key,
        ping=link.ready,
        version="1.2.3",
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(api.app(prefix)), base_url="http://a", headers=ADMIN)


@pytest.fixture
async def api(users: Users, link: Link) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(users, link) as client:
        yield client


async def new(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await api.post("/user/new", json=fields)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def update(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await api.post("/user/update", json=fields)
    assert answer.status_code == 200, answer.text
    updated: dict[str, Any] = answer.json()
    return updated


async def info(api: httpx.AsyncClient, user_id: str) -> dict[str, Any]:
    answer = await api.get("/user/info", params={"user_id": user_id})
    assert answer.status_code == 200, answer.text
    known: dict[str, Any] = answer.json()
    return known


@on_valkey
async def test_a_new_user_is_answered_with_the_record_and_a_key_shown_once(api: httpx.AsyncClient) -> None:
    made = await new(api, user_id="ana", rpm_limit=5, key_alias="laptop", duration="1d")
    assert (made["user_id"], made["rpm_limit"], made["spend"]) == ("ana", 5, 0)
    assert made["token_id"] == hashlib.sha256(made["key"].encode()).hexdigest()
    assert made["key_name"] == f"sk-...{made['key'][-4:]}"
    assert made["expires"] == "2027-01-16T08:00:00.000Z"
    known = await info(api, "ana")
    assert made["key"] not in json.dumps(known)
    assert [(row["token"], row["key_alias"]) for row in known["keys"]] == [(made["token_id"], "laptop")]
    assert known["keys"][0]["expires"] == made["expires"]


@on_valkey
async def test_a_user_is_made_without_a_key_where_none_is_wanted(api: httpx.AsyncClient) -> None:
    made = await new(api, user_id="ana", auto_create_key=False)
    assert (made["key"], made["key_name"], made["token_id"], made["expires"]) == ("", None, None, None)
    assert (await info(api, "ana"))["keys"] == []


@on_valkey
async def test_an_update_answers_with_the_whole_record(api: httpx.AsyncClient) -> None:
    await new(api, user_id="ana", rpm_limit=5, teams=["a"])
    updated = await update(api, user_id="ana", tpm_limit=7)
    assert updated["user_id"] == "ana"
    assert (updated["data"]["rpm_limit"], updated["data"]["tpm_limit"]) == (5, 7)
    assert "key" not in updated
    assert (await info(api, "ana"))["teams"] == ["a"]


@on_valkey
async def test_an_update_finds_its_user_by_email(api: httpx.AsyncClient) -> None:
    await new(api, user_id="ana", user_email="Ana@example.com")
    assert (await update(api, user_email="ana@EXAMPLE.com", rpm_limit=1))["user_id"] == "ana"


@on_valkey
async def test_an_update_names_and_prolongs_the_only_key(api: httpx.AsyncClient) -> None:
    made = await new(api, user_id="ana")
    assert "key" not in await update(api, user_id="ana", key_alias="phone", duration="2d")
    row = (await info(api, "ana"))["keys"][0]
    assert (row["token"], row["key_alias"], row["expires"]) == (made["token_id"], "phone", "2027-01-17T08:00:00.000Z")


@on_valkey
@pytest.mark.parametrize(
    ("fields", "makes_one"),
    [
        pytest.param({}, False, id="has one"),
        pytest.param({"key_alias": "second"}, True, id="a name comes with it"),
        pytest.param({"duration": "1d"}, True, id="a life comes with it"),
    ],
)
async def test_an_update_makes_a_key_where_one_is_asked_for(
    api: httpx.AsyncClient, fields: dict[str, str], makes_one: bool
) -> None:
    await new(api, user_id="ana")
    updated = await update(api, user_id="ana", auto_create_key=True, **fields)
    assert ("key" in updated) == makes_one
    assert len((await info(api, "ana"))["keys"]) == 1 + makes_one


@on_valkey
async def test_an_update_makes_the_first_key(api: httpx.AsyncClient) -> None:
    await new(api, user_id="ana", auto_create_key=False)
    assert (await update(api, user_id="ana", auto_create_key=True))["key"].startswith("sk-")


@on_valkey
async def test_a_password_is_kept_as_a_hash_and_never_shown(api: httpx.AsyncClient, url: str) -> None:
    made = await new(api, user_id="ana", password="open sesame")
    assert "password" not in made
    with redis.from_url(url, decode_responses=True) as client:
        kept = client.hget("lw:{u:ana}:doc", "password_hash")
        everything = json.dumps([client.hgetall(key) for key in client.scan_iter("lw:{u:ana}*")])
    assert str(kept).startswith("$argon2id$")
    assert "open sesame" not in everything


@on_valkey
@pytest.mark.parametrize(("field", "value"), [("config", {"a": 1}), ("team_id", "t")])
async def test_a_deprecated_field_is_taken_and_the_answer_says_so(
    api: httpx.AsyncClient, field: str, value: object
) -> None:
    answer = await api.post("/user/new", json={"user_id": "ana", field: value})
    assert (answer.status_code, answer.headers["deprecation"]) == (200, "@1767225600")
    assert "deprecation" not in (await api.post("/user/update", json={"user_id": "ana", "rpm_limit": 1})).headers


TOO_LARGE = b'{"metadata": "' + b"x" * MAX_BODY_BYTES + b'"}'


@on_valkey
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        pytest.param("POST", "/user/new", b'{"user_id": "ana"}', 409, "with this id", id="id taken"),
        pytest.param("POST", "/user/new", b'{"user_email": "A@b.c"}', 409, "email", id="email taken"),
        pytest.param("POST", "/user/update", b'{"user_id": "bob"}', 404, "no such user", id="no such id"),
        pytest.param("POST", "/user/update", b'{"user_email": "x@b.c"}', 404, "no such user", id="no such email"),
        pytest.param("POST", "/user/update", b'{"rpm_limit": 1}', 422, "user_id or user_email", id="nobody named"),
        pytest.param("POST", "/user/new", b'{"rpm": 1}', 422, "not known", id="unknown field"),
        pytest.param("POST", "/user/new", b'{"created_at": "2026"}', 422, "read only", id="read-only field"),
        pytest.param("POST", "/user/new", b"sk-secret", 422, "JSON", id="not JSON"),
        pytest.param("POST", "/user/new", b'{"rpm_limit": "sk-secret"}', 422, "whole number", id="no number"),
        pytest.param("POST", "/user/new", TOO_LARGE, 413, "larger than 2097152 bytes", id="too large"),
        pytest.param("POST", "/user/new", b'{"send_invite_email": true}', 400, "SMTP", id="no mail"),
        pytest.param("POST", "/user/update", b'{"user_id": "two", "key_alias": "x"}', 422, "exactly one", id="which?"),
        pytest.param("GET", "/user/info", b"", 400, "name a user_id", id="no id"),
        pytest.param("GET", "/user/info?user_id=bob", b"", 404, "no such user", id="no such user"),
    ],
)
async def test_what_cannot_be_done_is_refused_and_changes_nothing(
    api: httpx.AsyncClient, url: str, method: str, path: str, body: bytes, status: int, says: str
) -> None:
    await new(api, user_id="ana", user_email="a@b.c")
    await new(api, user_id="two")
    await update(api, user_id="two", auto_create_key=True, key_alias="second")
    with redis.from_url(url) as client:
        before = {key: client.dump(key) for key in client.scan_iter()}
        answer = await api.request(method, path, content=body)
        after = {key: client.dump(key) for key in client.scan_iter()}
    assert answer.status_code == status
    assert says in answer.text
    assert "sk-secret" not in answer.text
    assert answer.headers["cache-control"] == "no-store"
    if status != 422 or "error" in answer.json():
        assert answer.json()["error"]["code"] == str(status)
    assert after == before


@on_valkey
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="none"),
        pytest.param([(b"authorization", b"Bearer sk-other")], id="another"),
        pytest.param([(b"authorization", b"Basic sk-master")], id="no bearer"),
        pytest.param([(b"x-api-key", b"\xff")], id="not ASCII"),
    ],
)
async def test_only_the_master_key_opens_it(users: Users, link: Link, headers: list[tuple[bytes, bytes]]) -> None:
    async with client_of(users, link) as api:
        del api.headers["authorization"]
        answer = await api.post("/user/new", json={"user_id": "ana"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "auth_error")
    assert await users.get("ana") is None


@on_valkey
async def test_the_master_key_may_come_in_x_api_key(users: Users, link: Link) -> None:
    async with client_of(users, link) as api:
        del api.headers["authorization"]
        answer = await api.post("/user/new", json={"user_id": "ana"}, headers={"x-api-key": MASTER})
    assert answer.status_code == 200


@on_valkey
async def test_without_a_master_key_it_says_how_to_set_one(users: Users, link: Link) -> None:
    async with client_of(users, link, master_key=None) as api:
        answer = await api.post("/user/new", json={})
    assert answer.status_code == 503
    assert "set LLMWEIR_MASTER_KEY" in answer.json()["error"]["message"]


@on_valkey
async def test_all_routes_lie_under_the_prefix(users: Users, link: Link) -> None:
    async with client_of(users, link, prefix="/gate") as api:
        assert (await api.post("/gate/user/new", json={})).status_code == 200
        assert (await api.get("/gate/health/liveliness")).status_code == 200
        assert (await api.post("/user/new", json={})).status_code == 404


@on_valkey
async def test_health_needs_no_key_and_names_the_version(users: Users, link: Link) -> None:
    async with client_of(users, link) as api:
        del api.headers["authorization"]
        for path, status in (("/health/liveliness", "alive"), ("/health/readiness", "healthy")):
            answer = await api.get(path)
            assert (answer.status_code, answer.json()["status"]) == (200, status)
            assert answer.json()["version"] == "1.2.3"


async def test_without_the_store_it_is_alive_but_not_ready() -> None:
    away = Link("redis://127.0.0.1:1", timeout_ms=200)
    users = Users(away)
    with pytest.raises(StoreUnavailableError):
        await users.get("ana")
    async with client_of(users, away) as api:
        assert (await api.get("/health/liveliness")).status_code == 200
        ready = await api.get("/health/readiness")
        assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
        made = await api.post("/user/new", json={"user_id": "ana"})
        assert (made.status_code, made.json()["error"]["type"]) == (503, "server_error")
    await away.aclose()
