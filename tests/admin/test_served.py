"""The admin API beside the gate on a real server: which paths are its own, and whole visits of LiteLLM's clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.admin.serving import bearer
from tests.backends import on_valkey
from tests.harness import MASTER_KEY, Stage, around, staged

pytestmark = pytest.mark.asyncio

ADMIN = {"x-api-key": MASTER_KEY}


@pytest.fixture
async def stage(url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(url, tmp_path) as stage:
        yield stage


@on_valkey
@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        pytest.param("GET", "/user/list", 200, "application/json", id="list"),
        pytest.param("POST", "/key/sk-unknown/regenerate", 404, "application/json", id="a parameter"),
        pytest.param("POST", "/key/sk%2Funknown/regenerate", 404, "application/json", id="a quoted slash in it"),
        pytest.param("GET", "/invite/unknown", 410, "text/html; charset=utf-8", id="a page"),
        pytest.param("PATCH", "/user/new", 405, "application/json", id="another method"),
        pytest.param("GET", "/openapi.json", 200, "application/json", id="the document"),
    ],
)
async def test_a_path_of_the_table_goes_to_the_admin_api(
    stage: Stage, method: str, path: str, status: int, kind: str
) -> None:
    answer = await stage.http.request(method, path, headers=ADMIN)
    assert (answer.status_code, answer.headers["content-type"]) == (status, kind)
    assert len(answer.headers["x-request-id"]) == 32
    assert stage.seen == []


@on_valkey
@pytest.mark.parametrize("path", ["/key/sk-1", "/invite/", "/user", "/USER/LIST", "/user/list/"])
async def test_any_other_path_is_a_matter_for_the_gate(stage: Stage, path: str) -> None:
    answer = await stage.http.get(path, headers={"authorization": "Bearer sk-nobody"})
    assert answer.json()["error"]["code"] == ("path_not_gated" if answer.status_code == 404 else "invalid_api_key")


@on_valkey
async def test_around_an_app_its_own_paths_of_the_same_names_stay_its_own(url: str, tmp_path: Path) -> None:
    async with around(url, tmp_path) as stage:
        key = await stage.user("ana")
        for path in ("/user/list", "/key/x/regenerate", "/invite/x", "/llmweir/nothing"):
            await stage.http.get(path, headers=bearer(key))
        assert [seen.path for seen in stage.seen] == [
            "/user/list", "/key/x/regenerate", "/invite/x", "/llmweir/nothing"
        ]  # fmt: skip
        assert (await stage.http.get("/llmweir/user/list", headers=ADMIN)).status_code == 200
        assert (await stage.http.get("/llmweir/invite/x")).status_code == 410


@on_valkey
async def test_a_change_binds_the_very_next_request(stage: Stage) -> None:
    made = (await stage.http.post("/user/new", json={"user_id": "ana"}, headers=ADMIN)).json()
    assert (await stage.chat(made["key"])).status_code == 200
    for path, status in (("/user/block", 403), ("/user/unblock", 200), ("/user/delete", 401)):
        assert (await stage.http.post(path, json={"user_ids": ["ana"]}, headers=ADMIN)).status_code == 200
        assert (await stage.chat(made["key"])).status_code == status


async def ask(http: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
    answer = await http.request(method, path, json=body, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return answer.json()


@on_valkey
async def test_a_visit_as_terraform_makes_it(stage: Stage) -> None:
    http = stage.http
    wanted = {
        "user_id": "ana", "user_email": "Ana@b.c", "user_alias": "Ana", "user_role": "internal_user", "models": ["o1"],
        "max_budget": 10.5, "budget_duration": "30d", "tpm_limit": 100, "rpm_limit": 10, "metadata": {"team": "x"},
        "auto_create_key": True,
    }  # fmt: skip
    made = await ask(http, "POST", "/user/new", wanted)
    assert (await http.post("/user/new", json=wanted, headers=ADMIN)).status_code == 409
    listed = await ask(http, "GET", "/user/list?page=1&page_size=100&user_email=Ana%40b.c")
    assert [user["user_id"] for user in listed["users"] if user["user_email"] == "Ana@b.c"] == ["ana"]
    for _ in range(2):
        updated = await ask(http, "POST", "/user/update", {**wanted, "blocked": False, "rpm_limit": 11})
        assert "key" not in updated
    info = (await ask(http, "GET", "/user/info?user_id=ana"))["user_info"]
    assert {name: info[name] for name in wanted if name != "auto_create_key"} == {
        **{name: value for name, value in wanted.items() if name != "auto_create_key"}, "rpm_limit": 11
    }  # fmt: skip
    member = {"team_id": "red", "member": [{"role": "user", "user_id": "ana", "user_email": "Ana@b.c"}]}
    await ask(http, "POST", "/team/member_add", member)
    assert (await ask(http, "GET", "/user/info?user_id=ana"))["teams"] == ["red"]
    await ask(http, "POST", "/team/member_delete", {"user_id": "ana", "user_email": "Ana@b.c", "team_id": "red"})
    rows = (await ask(http, "GET", "/key/list?user_id=ana&return_full_object=true"))["keys"]
    assert [row["token"] for row in rows] == [made["token_id"]]
    assert await ask(http, "POST", "/user/delete", {"user_ids": ["ana"]}) == 1
    assert (await http.get("/user/info?user_id=ana", headers=ADMIN)).status_code == 404


@on_valkey
async def test_a_visit_as_the_python_client_makes_it(stage: Stage) -> None:
    http = stage.http
    made = await ask(http, "POST", "/user/new", {"user_email": "eve@b.c", "user_role": "internal_user"})
    assert made["user_id"] in [user["user_id"] for user in (await ask(http, "GET", "/user/list"))["users"]]
    key = await ask(http, "POST", "/key/generate", {"user_id": made["user_id"], "key_alias": "phone"})
    found = await ask(http, "GET", "/key/list?page=1&size=10&key_alias=phone&include_team_keys=false")
    assert found["keys"] == [key["token_id"]]
    assert (await ask(http, "GET", f"/key/info?key={key['key']}"))["info"]["key_alias"] == "phone"
    assert (await ask(http, "POST", "/key/delete", {"keys": [key["key"]], "key_aliases": None}))["deleted_keys"]
    assert (await ask(http, "GET", f"/v2/user/info?user_id={made['user_id']}"))["user_email"] == "eve@b.c"
    assert await ask(http, "POST", "/user/delete", {"user_ids": [made["user_id"]]}) == 1
