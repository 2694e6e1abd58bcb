"""The admin API over ASGI: how every call is read, and how each wrong one is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import redis
from tests.admin.serving import ADMIN, VERSION, api_of, call, client_of
from tests.backends import on_valkey

from llmweir.admin.access import Access, Identity, Right
from llmweir.admin.app import AdminApi
from llmweir.admin.attempts import FailedAttempts
from llmweir.admin.health import HealthRoutes
from llmweir.admin.requests import MAX_BODY_BYTES
from llmweir.admin.routes import AdminRoute, Answer, Call
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.link import Link
from llmweir.engine.users import Users
from llmweir.engine.wire import ReplyError
from llmweir.errors import StoreUnavailableError

pytestmark = pytest.mark.asyncio

TOO_LARGE = b'{"metadata": "' + b"x" * MAX_BODY_BYTES + b'"}'
DEEP = b'{"metadata":' + b'{"a":' * 40 + b"1" + b"}" * 41
VERY_DEEP = b"[" * 100_000


@on_valkey
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        pytest.param("POST", "/user/new", b'{"user_id": "ana"}', 409, "with this id", id="id taken"),
        pytest.param("POST", "/user/new", b'{"user_email": "A@b.c"}', 409, "email", id="email taken"),
        pytest.param("POST", "/user/new", b'{"key_alias": "second"}', 409, "alias", id="alias taken"),
        pytest.param("POST", "/user/update", b'{"user_id": "ana", "key_alias": "second"}', 409, "alias", id="of two"),
        pytest.param("POST", "/user/update", b'{"user_id": "bob"}', 404, "no such user", id="no such id"),
        pytest.param("POST", "/user/update", b'{"user_email": "x@b.c"}', 404, "no such user", id="no such email"),
        pytest.param("POST", "/user/update", b'{"rpm_limit": 1}', 422, "user_id or user_email", id="nobody named"),
        pytest.param("POST", "/user/update", b'{"user_id": "two", "key_alias": "x"}', 422, "exactly one", id="which?"),
        pytest.param("POST", "/user/new", b'{"rpm": 1}', 422, "not known", id="unknown field"),
        pytest.param("POST", "/user/new", b'{"created_at": "2026"}', 422, "read only", id="read-only field"),
        pytest.param("POST", "/user/new", b'{"rpm_limit": "sk-secret"}', 422, "whole number", id="no number"),
        pytest.param("POST", "/user/new", b'{"send_invite_email": true}', 400, "SMTP", id="no mail"),
        pytest.param("POST", "/user/delete", b'{"user_ids": ["two", "bob"]}', 404, "no such user", id="one unknown"),
        pytest.param("POST", "/user/delete", b'{"user_ids": []}', 422, "at least 1", id="no ids"),
        pytest.param("POST", "/user/delete", b'{"user_ids": "two"}', 422, "list", id="no list of ids"),
        pytest.param("POST", "/user/block", b'{"user_ids": ["two", "bob"]}', 404, "no such user", id="block unknown"),
        pytest.param("POST", "/user/unblock", b'{"user_ids": ["two", "bob"]}', 404, "no such user", id="unblock"),
        pytest.param("GET", "/user/info", b"", 400, "name a user_id", id="no id"),
        pytest.param("GET", "/user/info?user_id=bob", b"", 404, "no such user", id="no such user"),
        pytest.param("GET", "/user/info?user_id=ana&user_id=two", b"", 422, "string", id="two ids"),
        pytest.param("GET", "/user/info?user_id=%ff", b"", 422, "UTF-8", id="query not UTF-8"),
        pytest.param("GET", "/user/info?user_id=" + "a" * 257, b"", 422, "256", id="id too long"),
    ],
)
async def test_what_cannot_be_done_is_refused_and_changes_nothing(
    api: httpx.AsyncClient, url: str, method: str, path: str, body: bytes, status: int, says: str
) -> None:
    await call(api, "/user/new", user_id="ana", user_email="a@b.c")
    await call(api, "/user/new", user_id="two")
    await call(api, "/user/update", user_id="two", auto_create_key=True, key_alias="second")
    with redis.from_url(url) as client:
        before = {key: client.dump(key) for key in client.scan_iter()}
        answer = await api.request(method, path, content=body)
        after = {key: client.dump(key) for key in client.scan_iter()}
    assert (answer.status_code, says in answer.text) == (status, True), answer.text
    assert "sk-secret" not in answer.text
    if status != 422 or "error" in answer.json():
        assert answer.json()["error"]["code"] == str(status)
    assert before.keys() == after.keys()
    if status != 409:  # looking whether an address is free touches the list of those being written
        assert after == before


@on_valkey
@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        pytest.param(b"sk-secret", 422, "JSON", id="not JSON"),
        pytest.param(b"", 422, "JSON", id="empty"),
        pytest.param(b"null", 422, "object", id="null"),
        pytest.param(b"[]", 422, "object", id="a list"),
        pytest.param(b'{"user_id": "sk-secret\xff"}', 422, "JSON", id="not UTF-8"),
        pytest.param('{"user_id": "ana"}'.encode("utf-16"), 422, "JSON", id="UTF-16"),
        pytest.param(b'{"user_id": "\\ud800"}', 422, "JSON", id="lone surrogate"),
        pytest.param(b'{"metadata": {"a": "\\ud800"}}', 422, "JSON", id="lone surrogate inside"),
        pytest.param(b'{"user_id": "a\\u0000b"}', 422, "Control characters", id="control character"),
        pytest.param(b'{"max_budget": NaN}', 422, "USD", id="NaN"),
        pytest.param(b'{"rpm_limit": ' + b"9" * 5000 + b"}", 422, "JSON", id="endless number"),
        pytest.param(DEEP, 422, "32 deep", id="deep"),
        pytest.param(VERY_DEEP, 422, "recursion limit", id="very deep"),
        pytest.param(TOO_LARGE, 413, "larger than 2097152 bytes", id="too large"),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused_without_what_was_sent(
    api: httpx.AsyncClient, content: bytes, status: int, says: str
) -> None:
    answer = await api.post("/user/new", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, says in answer.text) == (status, True), answer.text
    assert "sk-secret" not in answer.text


async def parts(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 65_536):
        yield content[start : start + 65_536]


@on_valkey
async def test_a_body_of_no_declared_length_is_cut_where_it_gets_too_large(api: httpx.AsyncClient) -> None:
    assert (await api.post("/user/new", content=parts(TOO_LARGE))).status_code == 413


@on_valkey
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 200, id="none"),
        pytest.param({"content-type": "application/json"}, 200, id="JSON"),
        pytest.param({"content-type": "Application/JSON; charset=UTF-8"}, 200, id="JSON in UTF-8"),
        pytest.param({"content-type": "application/vnd.api+json"}, 200, id="a kind of JSON"),
        pytest.param({"content-type": "application/json; charset=utf-16"}, 415, id="another charset"),
        pytest.param({"content-type": "application/x-www-form-urlencoded"}, 200, id="what curl calls any body"),
        pytest.param({"content-type": "text/plain"}, 415, id="text"),
        pytest.param({"content-type": ""}, 415, id="nothing"),
        pytest.param({"content-encoding": "gzip"}, 415, id="compressed"),
    ],
)
async def test_the_content_type_says_what_the_body_is(
    api: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    assert (await api.post("/user/new", content=b"{}", headers=headers)).status_code == status


@on_valkey
@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/user/nothing", 404, None),
        ("POST", "/", 404, None),
        ("GET", "/user/new", 405, {"POST"}),
        ("DELETE", "/user/delete", 405, {"POST"}),
        ("POST", "/user/info", 405, {"GET", "HEAD"}),
        ("PUT", "/invite/x", 405, {"GET", "HEAD", "POST"}),
        ("OPTIONS", "/user/list", 405, {"GET", "HEAD"}),
    ],
)
async def test_an_unknown_path_or_method_is_refused_in_the_shape_of_the_others(
    api: httpx.AsyncClient, method: str, path: str, status: int, allow: set[str] | None
) -> None:
    answer = await api.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, str(status))
    if allow is not None:
        assert set(answer.headers["allow"].split(", ")) == allow


@on_valkey
async def test_head_answers_as_get_does(api: httpx.AsyncClient) -> None:
    assert (await api.head("/user/list")).status_code == 200
    assert (await api.head("/user/list", headers={"authorization": "Bearer sk-x"})).status_code == 401


@on_valkey
async def test_every_answer_has_an_id_of_its_own(api: httpx.AsyncClient) -> None:
    paths = ("/user/list", "/user/list", "/user/info", "/nothing", "/health/liveliness", "/invite/x")
    ids = [(await api.get(path)).headers["x-request-id"] for path in paths]
    assert len(set(ids)) == len(paths)


@on_valkey
async def test_all_routes_lie_under_the_prefix(users: Users, link: Link) -> None:
    async with client_of(api_of(users, link, prefix="/gate"), prefix="/gate") as api:
        assert (await api.post("/gate/user/new", json={})).status_code == 200
        assert (await api.get("/gate/health/liveliness")).status_code == 200
        assert (await api.post("/user/new", json={})).status_code == 404


@on_valkey
async def test_health_needs_no_key_and_names_the_version(api: httpx.AsyncClient) -> None:
    api.headers.pop("authorization")
    for path, status in (("/health/liveliness", "alive"), ("/health/readiness", "healthy")):
        answer = await api.get(path)
        assert (answer.status_code, answer.json()["status"]) == (200, status)
        assert answer.json()["version"] == VERSION


async def test_without_the_store_it_is_alive_but_not_ready() -> None:
    away = Link("redis://127.0.0.1:1", timeout_ms=200)
    users = Users(away)
    with pytest.raises(StoreUnavailableError):
        await users.get("ana")
    async with client_of(api_of(users, away)) as api:
        assert (await api.get("/health/liveliness")).status_code == 200
        ready = await api.get("/health/readiness")
        assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
        made = await api.post("/user/new", json={"user_id": "ana"})
        assert (made.status_code, made.json()["error"]["type"]) == (503, "server_error")
        assert made.headers["retry-after"] == "1"
        assert (await api.get("/user/list", headers={"authorization": "Bearer sk-x"})).status_code == 503
    await away.aclose()


async def test_a_store_that_is_loading_its_data_is_not_ready() -> None:
    async def refuses() -> None:
        raise ReplyError("LOADING the dataset is being loaded in memory")

    ready = await HealthRoutes(refuses, VERSION).readiness(Call(identity=Identity()))
    assert isinstance(ready.content, dict)
    assert (ready.status, ready.content["status"]) == (503, "unavailable")


@on_valkey
async def test_a_store_that_refuses_is_503_without_its_words(api: httpx.AsyncClient, url: str) -> None:
    await call(api, "/user/new", user_id="ana")
    with redis.from_url(url) as client:
        client.set("lw:{u:ana}", "not a hash")
        answer = await api.get("/user/info?user_id=ana")
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
    assert "WRONGTYPE" not in answer.text


def bare(users: Users, handle: Callable[[Call], Any], **options: Any) -> AdminApi:
    """An admin API of one open route."""
    access = Access(ApiKeys(users), read_key=lambda _: None, master_key="sk-x", attempts=FailedAttempts())
    row = AdminRoute(method="POST", path="/x", right=Right.OPEN, handle=handle, summary="", **options)
    return AdminApi([row], access, body_timeout_s=0.02)


@on_valkey
async def test_a_fault_of_the_program_is_500_in_the_shape_of_the_others(users: Users) -> None:
    async def fails(_: Call) -> Answer:
        raise RuntimeError("secret")

    transport = httpx.ASGITransport(bare(users, fails).app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gate") as client:
        answer = await client.post("/x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "500")
    assert "secret" not in answer.text
    assert answer.headers["cache-control"] == "no-store"


@on_valkey
@pytest.mark.parametrize(
    ("messages", "status"),
    [
        pytest.param([{"type": "http.request", "body": b"{", "more_body": True}], 408, id="too slow"),
        pytest.param([{"type": "http.disconnect"}], 400, id="gone"),
    ],
)
async def test_a_body_that_does_not_come_is_not_waited_for(
    users: Users, link: Link, messages: list[dict[str, Any]], status: int
) -> None:
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        said.append(message)

    headers = [(name.encode(), value.encode()) for name, value in ADMIN.items()]
    scope = {
        "type": "http", "method": "POST", "path": "/user/new", "headers": headers, "query_string": b"",
        "client": ("192.0.2.1", 1),
    }  # fmt: skip
    await api_of(users, link, body_timeout_s=0.02).app()(scope, receive, send)
    assert said[0]["status"] == status
    assert json.loads(said[1]["body"])["error"]["code"] == str(status)
