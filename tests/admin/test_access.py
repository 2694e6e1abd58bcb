"""Who may do what: every route with every role, and the ways round it that do not work."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import httpx
import msgspec
import pytest
from tests.admin.serving import MASTER, api_of, bearer, call, client_of, read
from tests.backends import Clock, on_valkey

from llmweir.admin.access import RIGHTS, Identity, Right
from llmweir.admin.attempts import FAILURES_PER_MINUTE
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.link import Link
from llmweir.engine.users import Users
from llmweir.key_records import NewKey
from llmweir.record_fields import UserRole
from llmweir.records import NewUser

pytestmark = pytest.mark.asyncio

NEW_ADMIN = NewUser(user_role="proxy_admin")
Group = Literal["open", "usage", "read", "own keys", "read all", "write all"]
CALLERS = (
    "nobody", "master", "proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer", "team", "customer"
)  # fmt: skip
MAY: dict[Group, set[str]] = {
    "open": set(CALLERS),
    "usage": set(CALLERS) - {"nobody"},
    "read": {"master", "proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer"},
    "own keys": {"master", "proxy_admin", "internal_user"},
    "read all": {"master", "proxy_admin", "proxy_admin_viewer"},
    "write all": {"master", "proxy_admin"},
}
"""The table of the contract, by what a route does."""


class Row(msgspec.Struct, frozen=True):
    """One route, and a call of it that does what it is for; KEY stands for a second key of the caller's."""

    group: Group
    method: str
    path: str
    body: dict[str, Any] | None = None
    status: int = 200
    for_master: int = 200


ROWS = (
    Row("write all", "POST", "/user/new", {}),
    Row("write all", "POST", "/user/update", {"user_id": "other", "rpm_limit": 1}),
    Row("write all", "POST", "/user/delete", {"user_ids": ["other"]}),
    Row("write all", "POST", "/user/block", {"user_ids": ["other"]}),
    Row("write all", "POST", "/user/unblock", {"user_ids": ["other"]}),
    Row("write all", "POST", "/user/bulk_update", {"users": [{"user_id": "other", "rpm_limit": 1}]}),
    Row("write all", "POST", "/team/member_add", {"team_id": "t", "member": {"user_id": "other"}}),
    Row("write all", "POST", "/team/member_delete", {"team_id": "t", "user_id": "other"}),
    Row("read all", "GET", "/user/list"),
    Row("read all", "GET", "/user/get_users"),
    Row("read all", "GET", "/metrics"),
    Row("read", "GET", "/user/info", for_master=400),
    Row("read", "GET", "/v2/user/info", for_master=400),
    Row("read", "GET", "/user/available_roles"),
    Row("usage", "GET", "/user/usage", for_master=400),
    Row("usage", "GET", "/user/daily/activity?start_date=2027-01-01&end_date=2027-01-02"),
    Row("own keys", "POST", "/key/generate", {}),
    Row("own keys", "POST", "/key/update", {"key": "KEY", "key_alias": "phone"}),
    Row("own keys", "POST", "/key/block", {"key": "KEY"}),
    Row("own keys", "POST", "/key/unblock", {"key": "KEY"}),
    Row("own keys", "POST", "/key/KEY/regenerate", {}),
    Row("own keys", "POST", "/key/delete", {"keys": ["KEY"]}),
    Row("read", "GET", "/key/info", for_master=400),
    Row("read", "GET", "/key/list"),
    Row("open", "GET", "/health/liveliness"),
    Row("open", "GET", "/health/readiness"),
    Row("open", "GET", "/openapi.json"),
    Row("open", "GET", "/invite/unknown", status=410, for_master=410),
)
FORMS = {("POST", "/invite/{token}")}
"""Forms; what may be done with them is not a matter of roles."""


def status_of(row: Row, caller: str) -> int:
    if caller not in MAY[row.group]:
        return 401 if caller == "nobody" else 403
    return row.for_master if caller == "master" else row.status


async def test_the_table_has_every_route(users: Users, link: Link) -> None:
    api = api_of(users, link)
    routes = {(method, path) for path, methods in api._operations.items() for method in methods}
    known = {(row.method, row.path.partition("?")[0].replace("KEY", "{key}")) for row in ROWS}
    assert {(method, path.replace("unknown", "{token}")) for method, path in known} == routes - FORMS


async def keys_of(api: httpx.AsyncClient, caller: str) -> tuple[str | None, str]:
    """A key to call with, and a second one of the same user."""
    await call(api, "/user/new", user_id="other", auto_create_key=False)
    if caller in ("nobody", "master"):
        second = await call(api, "/key/generate", user_id="other")
        return (MASTER if caller == "master" else None), second["key"]
    first = await call(api, "/user/new", user_id="caller", user_role=caller)
    return first["key"], (await call(api, "/key/generate", user_id="caller"))["key"]


@on_valkey
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path.partition('?')[0]}")
async def test_every_route_opens_to_the_roles_of_the_contract_alone(
    api: httpx.AsyncClient, row: Row, caller: str
) -> None:
    key, second = await keys_of(api, caller)
    body = None if row.body is None else msgspec.json.encode(row.body).decode().replace("KEY", second)
    api.headers.pop("authorization")
    headers = {"content-type": "application/json"} | (bearer(key) if key is not None else {})
    answer = await api.request(row.method, row.path.replace("KEY", second), content=body, headers=headers)
    assert answer.status_code == status_of(row, caller), answer.text


async def test_the_rights_of_a_role_never_shrink_with_a_higher_one() -> None:
    order: tuple[UserRole, ...] = ("customer", "internal_user_viewer", "internal_user", "proxy_admin")
    rights = [RIGHTS[role] for role in order]
    assert all(lower <= higher for lower, higher in itertools.pairwise(rights))
    assert RIGHTS["proxy_admin"] == set(Right)
    assert not any(Identity().may(right) for right in Right if right is not Right.OPEN)


async def user_with(api: httpx.AsyncClient, user_id: str, **fields: Any) -> dict[str, str]:
    """Makes a user and returns the headers to call with."""
    return bearer((await call(api, "/user/new", user_id=user_id, **fields))["key"])


OTHERS = [
    pytest.param("GET", "/user/info?user_id={}", None, id="info"),
    pytest.param("GET", "/v2/user/info?user_id={}", None, id="flat info"),
    pytest.param("GET", "/user/usage?user_id={}", None, id="usage"),
    pytest.param("GET", "/user/daily/activity?start_date=2027-01-01&end_date=2027-01-01&user_id={}", None, id="days"),
    pytest.param("GET", "/key/list?user_id={}", None, id="keys"),
    pytest.param("POST", "/key/generate", {"user_id": "{}"}, id="a key"),
]


@on_valkey
@pytest.mark.parametrize(("method", "path", "body"), OTHERS)
async def test_another_user_is_403_whether_or_not_there_is_one(
    api: httpx.AsyncClient, method: str, path: str, body: dict[str, str] | None
) -> None:
    caller = await user_with(api, "caller")
    await user_with(api, "other")
    answers = []
    for user_id in ("other", "no such user"):
        json = {"user_id": user_id} if body is not None else None
        answers.append(await api.request(method, path.format(user_id), json=json, headers=caller))
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].json() == answers[1].json()


@on_valkey
async def test_a_user_reads_the_own_record_by_name_and_without(api: httpx.AsyncClient) -> None:
    caller = await user_with(api, "caller")
    for path in ("/user/info", "/user/info?user_id=caller", "/user/info?user_id="):
        assert (await api.get(path, headers=caller)).json()["user_id"] == "caller"


@on_valkey
@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/user/update", {"user_id": "caller", "user_role": "proxy_admin"}, id="own role"),
        pytest.param("/user/update", {"user_id": "caller", "max_budget": 1000}, id="own limits"),
        pytest.param("/user/update", {"user_email": "c@d.e", "blocked": False}, id="own record by email"),
        pytest.param("/user/bulk_update", {"users": [{"user_id": "caller", "rpm_limit": 9}]}, id="own limits in bulk"),
        pytest.param("/user/bulk_update", {"all_users": True, "user_updates": {"rpm_limit": 9}}, id="all limits"),
        pytest.param("/team/member_add", {"team_id": "t", "user_id": "caller"}, id="own teams"),
        pytest.param("/user/new", {"user_role": "proxy_admin"}, id="a new admin"),
        pytest.param("/user/delete", {"user_ids": ["caller"]}, id="own end"),
        pytest.param("/user/unblock", {"user_ids": ["caller"]}, id="own unblocking"),
        pytest.param("/key/generate", {"rpm_limit": 100}, id="limits of an own key"),
    ],
)
@pytest.mark.parametrize("role", ["internal_user", "internal_user_viewer", "proxy_admin_viewer", "team"])
async def test_nobody_but_an_admin_writes_a_record_or_a_limit(
    api: httpx.AsyncClient, role: str, path: str, body: dict[str, Any]
) -> None:
    caller = await user_with(api, "caller", user_role=role, user_email="c@d.e", rpm_limit=5)
    before = await read(api, "/user/info", user_id="caller")
    assert (await api.post(path, json=body, headers=caller)).status_code == 403
    assert await read(api, "/user/info", user_id="caller") == before


@on_valkey
async def test_an_admin_writes_the_own_record(api: httpx.AsyncClient) -> None:
    caller = await user_with(api, "caller", user_role="proxy_admin")
    answer = await api.post("/user/update", json={"user_id": "caller", "rpm_limit": 7}, headers=caller)
    assert answer.json()["data"]["rpm_limit"] == 7


@on_valkey
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        pytest.param("/user/delete", {"user_ids": ["caller"]}, 401, id="user deleted"),
        pytest.param("/key/delete", {"keys": ["KEY"]}, 401, id="key deleted"),
        pytest.param("/key/KEY/regenerate", {}, 401, id="key made anew"),
        pytest.param("/user/block", {"user_ids": ["caller"]}, 403, id="user blocked"),
        pytest.param("/key/block", {"key": "KEY"}, 403, id="key blocked"),
        pytest.param("/user/update", {"user_id": "caller", "user_role": "internal_user"}, 403, id="role taken"),
    ],
)
async def test_what_is_taken_from_a_key_is_gone_at_once(
    api: httpx.AsyncClient, path: str, body: dict[str, Any], status: int
) -> None:
    key = (await call(api, "/user/new", user_id="caller", user_role="proxy_admin"))["key"]
    assert (await api.get("/user/list", headers=bearer(key))).status_code == 200
    filled = msgspec.json.decode(msgspec.json.encode(body).replace(b"KEY", key.encode()))
    await call(api, path.replace("KEY", key), **filled)
    assert (await api.get("/user/list", headers=bearer(key))).status_code == status


@on_valkey
async def test_an_expired_key_is_401_from_the_moment_it_ends(api: httpx.AsyncClient, clock: Clock) -> None:
    caller = await user_with(api, "caller", duration="10s")
    clock.advance(ms=9_999)
    assert (await api.get("/user/info", headers=caller)).status_code == 200
    clock.advance(ms=1)
    assert (await api.get("/user/info", headers=caller)).status_code == 401


@on_valkey
@pytest.mark.parametrize("path", ["/User/list", "/user/LIST", "/user/list/", "//user/list", "/user/%2e/list", "/key"])
async def test_a_path_spelled_otherwise_is_no_route(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.get(f"http://gate{path}")
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "There is no such path.")


@on_valkey
@pytest.mark.parametrize("header", ["x-http-method-override", "x-http-method", "x-method-override"])
async def test_a_header_does_not_change_the_method(api: httpx.AsyncClient, header: str) -> None:
    answer = await api.get("/user/list", headers={header: "POST"})
    assert (answer.status_code, "header that names it" in answer.text) == (400, True)


@on_valkey
async def test_two_keys_in_one_call_are_refused(api: httpx.AsyncClient) -> None:
    caller = (await user_with(api, "caller"))["authorization"].encode()
    headers = [(b"authorization", b"Bearer sk-master"), (b"authorization", caller)]
    api.headers.pop("authorization")
    assert (await api.get("/user/list", headers=headers)).status_code == 400


@on_valkey
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param([], 401, id="none"),
        pytest.param([(b"authorization", b"Bearer sk-other")], 401, id="another"),
        pytest.param([(b"authorization", b"Bearer sk-maste")], 401, id="shorter"),
        pytest.param([(b"authorization", b"Bearer sk-master2")], 401, id="longer"),
        pytest.param([(b"authorization", b"Bearer SK-MASTER")], 401, id="another case"),
        pytest.param([(b"authorization", b"Basic sk-master")], 401, id="no bearer"),
        pytest.param([(b"x-api-key", b"\xff")], 401, id="not ASCII"),
        pytest.param([(b"authorization", b"Bearer " + b"k" * 60_000)], 401, id="huge"),
        pytest.param([(b"cookie", b"token=sk-master")], 401, id="a cookie"),
        pytest.param([(b"authorization", b"bearer sk-master")], 200, id="bearer in any case"),
        pytest.param([(b"x-api-key", b"sk-master")], 200, id="x-api-key"),
        pytest.param([(b"api-key", b"sk-master")], 200, id="api-key"),
        pytest.param([(b"x-goog-api-key", b"sk-master")], 200, id="x-goog-api-key"),
    ],
)
async def test_the_key_is_read_from_the_headers_of_the_contract(
    api: httpx.AsyncClient, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    api.headers.pop("authorization")
    answer = await api.get("/user/list", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert (answer.json()["error"]["type"], answer.headers["www-authenticate"]) == ("auth_error", "Bearer")


@on_valkey
async def test_without_a_master_key_every_route_but_the_open_ones_says_how_to_set_one(users: Users, link: Link) -> None:
    key = (await ApiKeys(users).mint(await users.create(NEW_ADMIN), NewKey())).secret
    async with client_of(api_of(users, link, master_key=None)) as api:
        for headers in ({}, bearer(key)):
            answer = await api.get("/user/list", headers=headers)
            assert answer.status_code == 503
            assert "set LLMWEIR_MASTER_KEY" in answer.json()["error"]["message"]
        assert (await api.get("/health/readiness")).status_code == 200


@on_valkey
async def test_too_many_wrong_keys_from_one_address_are_429_and_lock_nobody_out(users: Users, link: Link) -> None:
    api = api_of(users, link)
    async with client_of(api) as tries, client_of(api, address="192.0.2.2") as elsewhere:
        wrong = [await tries.get("/user/list", headers=bearer("sk-0"))]
        while wrong[-1].status_code == 401 and len(wrong) < 100:
            wrong.append(await tries.get("/user/list", headers=bearer(f"sk-{len(wrong)}")))
        assert (len(wrong) > FAILURES_PER_MINUTE, wrong[-1].status_code) == (True, 429)
        assert 1 <= int(wrong[-1].headers["retry-after"]) <= 3
        assert (await tries.get("/user/list")).status_code == 200
        assert (await elsewhere.get("/user/list", headers=bearer("sk-x"))).status_code == 401
