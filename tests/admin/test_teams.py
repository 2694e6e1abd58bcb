"""Users join and leave teams in every shape that clients send."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.admin.serving import call, read
from tests.backends import on_valkey

pytestmark = pytest.mark.asyncio


@on_valkey
@pytest.mark.parametrize(
    "named",
    [
        pytest.param({"member": {"user_id": "ana", "role": "user"}}, id="a member"),
        pytest.param({"member": [{"role": "user", "user_id": "ana", "user_email": "Ana@b.c"}]}, id="a list"),
        pytest.param({"member": {"user_email": "ANA@B.C"}}, id="by email"),
        pytest.param({"user_id": "ana"}, id="beside the team"),
        pytest.param({"user_id": "ana", "user_email": "ana@b.c", "max_budget_in_team": None}, id="by both"),
    ],
)
async def test_a_user_joins_and_leaves(api: httpx.AsyncClient, named: dict[str, Any]) -> None:
    await call(api, "/user/new", user_id="ana", user_email="Ana@b.c", teams=["old"])
    for _ in range(2):  # joining twice is joining once
        joined = await call(api, "/team/member_add", team_id="new", **named)
        assert joined["team_id"] == "new"
        assert [(user["user_id"], user["teams"]) for user in joined["updated_users"]] == [("ana", ["old", "new"])]
    assert (await read(api, "/user/list", team="new"))["total"] == 1
    for _ in range(2):
        left = await call(api, "/team/member_delete", team_id="new", **named)
        assert left["updated_users"][0]["teams"] == ["old"]
    assert (await read(api, "/user/list", team="new"))["total"] == 0


@on_valkey
@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        pytest.param({"member": [{"user_id": "ana"}, {"user_id": "nobody"}]}, 404, "user_id", id="one unknown"),
        pytest.param({"member": [{"user_id": "ana"}, {"user_email": "x@y.z"}]}, 404, "user_email", id="unknown email"),
        pytest.param({"user_id": "ana", "user_email": "x@y.z"}, 422, "the same user", id="another's email"),
        pytest.param({"member": {"user_id": "ana", "role": "admin"}}, 422, "role", id="a right over the team"),
        pytest.param({"user_id": "ana", "max_budget_in_team": 5}, 422, "max_budget_in_team", id="a budget in it"),
        pytest.param({}, 422, "by member", id="nobody"),
        pytest.param({"user_id": "ana", "member": {"user_id": "ana"}}, 422, "by member", id="two ways"),
        pytest.param({"member": []}, 422, "at least 1", id="no members"),
        pytest.param({"member": {}}, 422, "user_id or user_email", id="an empty member"),
        pytest.param({"member": "ana"}, 422, "an object, or a list", id="no member"),
    ],
)
@pytest.mark.parametrize("path", ["/team/member_add", "/team/member_delete"])
async def test_members_that_cannot_be_are_refused_and_nobody_moves(
    api: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    await call(api, "/user/new", user_id="ana", teams=["red"])
    answer = await api.post(path, json={"team_id": "red" if "delete" in path else "blue", **body})
    assert (answer.status_code, says in answer.text) == (status, True), answer.text
    assert (await read(api, "/v2/user/info", user_id="ana"))["teams"] == ["red"]


@on_valkey
async def test_a_team_is_named(api: httpx.AsyncClient) -> None:
    assert (await api.post("/team/member_add", json={"user_id": "ana"})).status_code == 422
