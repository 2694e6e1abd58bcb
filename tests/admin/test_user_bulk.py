"""`/user/bulk_update`: every update has a result of its own."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.admin.serving import call, read
from tests.backends import on_valkey

from llmweir.admin import user_bulk

pytestmark = pytest.mark.asyncio


@on_valkey
async def test_an_update_that_fails_stops_no_other(api: httpx.AsyncClient) -> None:
    for user_id in ("ana", "bob"):
        await call(api, "/user/new", user_id=user_id, user_email=f"{user_id}@b.c")
    done = await call(
        api,
        "/user/bulk_update",
        users=[
            {"user_id": "ana", "rpm_limit": 5},
            {"user_id": "nobody", "rpm_limit": 5},
            {"user_email": "bob@b.c", "auto_create_key": True, "key_alias": "second"},
            {"user_id": "ana", "user_email": "bob@b.c"},
            {"user_id": "ana", "tpm_limit": 6},
        ],
    )
    assert [result["success"] for result in done["results"]] == [True, False, True, False, True]
    assert (done["total_requested"], done["successful_updates"], done["failed_updates"]) == (5, 3, 2)
    first, unknown, minted, taken, last = done["results"]
    assert (first["user_id"], first["error"], first["updated_user"]["rpm_limit"]) == ("ana", None, 5)
    assert (unknown["user_id"], unknown["error"], unknown["updated_user"]) == (
        "nobody", "There is no such user.", None
    )  # fmt: skip
    assert minted["key"].startswith("sk-")
    assert "email" in taken["error"]
    assert (last["updated_user"]["rpm_limit"], last["updated_user"]["tpm_limit"]) == (5, 6)


@on_valkey
async def test_all_users_get_the_same_update(api: httpx.AsyncClient) -> None:
    for number in range(101):
        await call(api, "/user/new", user_id=f"u{number:03}", auto_create_key=False)
    same = {"rpm_limit": 7, "model_max_budget": {"o1": {"max_budget": 1}}, "metadata": None}
    done = await call(api, "/user/bulk_update", all_users=True, user_updates=same)
    assert (done["total_requested"], done["successful_updates"]) == (101, 101)
    listed = await read(api, "/user/list", page_size=100)
    assert {user["rpm_limit"] for user in listed["users"]} == {7}


@on_valkey
async def test_more_users_than_one_call_changes_are_refused_and_none_is_changed(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_bulk, "MAX_UPDATES", 100)
    for number in range(101):
        await call(api, "/user/new", user_id=f"u{number}", auto_create_key=False)
    answer = await api.post("/user/bulk_update", json={"all_users": True, "user_updates": {"rpm_limit": 7}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "all_users")
    assert (await read(api, "/v2/user/info", user_id="u0"))["rpm_limit"] is None


@on_valkey
@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param({}, "either users", id="nothing"),
        pytest.param({"users": []}, "at least 1", id="no updates"),
        pytest.param({"users": [{"user_id": "ana"}] * 501}, "at most 500", id="too many"),
        pytest.param({"users": [{"user_id": "ana"}, {"rpm_limit": 1}]}, "user_id or user_email", id="one of nobody"),
        pytest.param({"users": [{"user_id": "ana", "rpm": 1}]}, "not known", id="one unknown field"),
        pytest.param({"all_users": True}, "either users", id="no update for all"),
        pytest.param({"all_users": False, "user_updates": {"rpm_limit": 1}}, "either users", id="not all"),
        pytest.param({"users": [{"user_id": "ana"}], "all_users": True}, "either users", id="both"),
        pytest.param({"all_users": True, "user_updates": {}}, "no field", id="empty update"),
        pytest.param({"all_users": True, "user_updates": {"user_email": "a@b.c"}}, "the same", id="one email for all"),
        pytest.param({"all_users": True, "user_updates": {"user_id": "x"}}, "the same", id="one id for all"),
    ],
)
async def test_a_bulk_update_that_is_not_valid_changes_nobody(
    api: httpx.AsyncClient, body: dict[str, Any], says: str
) -> None:
    await call(api, "/user/new", user_id="ana")
    before = await read(api, "/v2/user/info", user_id="ana")
    answer = await api.post("/user/bulk_update", json=body)
    assert (answer.status_code, says in answer.text) == (422, True), answer.text
    assert await read(api, "/v2/user/info", user_id="ana") == before
