"""`/user/list`: pages, filters, orders, and their edges."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.admin.serving import call, read
from tests.backends import Clock, on_valkey

pytestmark = pytest.mark.asyncio


async def make_five(api: httpx.AsyncClient, clock: Clock) -> None:
    """Five users, a millisecond apart."""
    for number, name in enumerate(("ana", "bob", "cleo", "dan", "eve")):
        fields: dict[str, Any] = {"user_email": f"{name}@Example.com", "teams": ["red"] if number % 2 else ["blue"]}
        if name == "eve":
            fields |= {"user_role": "customer", "auto_create_key": False, "user_alias": "Evelyn"}
        await call(api, "/user/new", user_id=name, **fields)
        clock.advance(ms=1)


@on_valkey
@pytest.mark.parametrize(
    ("query", "shown", "total", "pages"),
    [
        pytest.param("", "eve dan cleo bob ana", 5, 1, id="newest first"),
        pytest.param("page_size=2", "eve dan", 5, 3, id="first page"),
        pytest.param("page=3&page_size=2", "ana", 5, 3, id="last page"),
        pytest.param("page=4&page_size=2", "", 5, 3, id="past the end"),
        pytest.param("page_size=5", "eve dan cleo bob ana", 5, 1, id="exactly one page"),
        pytest.param("sort_by=user_id&sort_order=asc", "ana bob cleo dan eve", 5, 1, id="by id"),
        pytest.param("sort_by=user_email&sort_order=desc", "eve dan cleo bob ana", 5, 1, id="by email"),
        pytest.param("role=customer", "eve", 1, 1, id="role"),
        pytest.param("role=team", "", 0, 0, id="role of nobody"),
        pytest.param("team=red", "dan bob", 2, 1, id="team"),
        pytest.param("user_email=BOB@example.com", "bob", 1, 1, id="email"),
        pytest.param("user_email=@example", "eve dan cleo bob ana", 5, 1, id="part of an email"),
        pytest.param("search=evelyn", "eve", 1, 1, id="alias"),
        pytest.param("user_ids=ana,%20dan,nobody", "dan ana", 2, 1, id="ids between commas"),
        pytest.param("user_ids=ana&user_ids=dan", "dan ana", 2, 1, id="ids one by one"),
        pytest.param("user_ids=,", "", 0, 0, id="no ids"),
        pytest.param("user_ids=", "eve dan cleo bob ana", 5, 1, id="ids left empty"),
        pytest.param("sso_user_ids=x&limit=1", "eve dan cleo bob ana", 5, 1, id="unknown parameters"),
    ],
)
async def test_a_list_is_a_page_of_those_who_match(
    api: httpx.AsyncClient, clock: Clock, query: str, shown: str, total: int, pages: int
) -> None:
    await make_five(api, clock)
    found = (await api.get(f"/user/list?{query}")).json()
    assert [user["user_id"] for user in found["users"]] == shown.split()
    assert (found["total"], found["total_pages"]) == (total, pages)
    assert (await api.get(f"/user/get_users?{query}")).json() == found


@on_valkey
@pytest.mark.parametrize(
    "query",
    ["page=0", "page=-1", "page=x", "page=1.5", "page_size=0", "page_size=101", "role=king", "sort_by=password",
     "sort_order=up", "user_email=" + "x" * 257, "page=1&page=2", "page=9999999999999999999999"],
)  # fmt: skip
async def test_a_question_that_makes_no_sense_is_422_and_names_the_parameter(
    api: httpx.AsyncClient, query: str
) -> None:
    answer = await api.get(f"/user/list?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", query.partition("=")[0]]


@on_valkey
async def test_a_listed_user_is_the_record_and_the_number_of_keys(api: httpx.AsyncClient) -> None:
    await call(api, "/user/new", user_id="ana", rpm_limit=3)
    await call(api, "/key/generate", user_id="ana")
    [listed] = (await read(api, "/user/list"))["users"]
    assert listed == {**await read(api, "/v2/user/info", user_id="ana"), "key_count": 2}


@on_valkey
async def test_a_user_that_exists_already_is_found_by_the_email(api: httpx.AsyncClient) -> None:
    await call(api, "/user/new", user_id="ana", user_email="a+b@c.d")
    assert (await api.post("/user/new", json={"user_email": "a+b@c.d"})).status_code == 409
    found = await read(api, "/user/list", user_email="a+b@c.d", page=1, page_size=100)
    assert [(user["user_id"], user["user_email"]) for user in found["users"]] == [("ana", "a+b@c.d")]
