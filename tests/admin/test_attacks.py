"""What somebody tried, and what must not come of it; each was once a hole, or would be one."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from tests.admin.serving import api_of, bearer, call, client_of, read
from tests.backends import on_real_servers, on_valkey
from tests.harness import MASTER_KEY, staged

from llmweir.admin.key_rights import MAX_OWN_KEYS
from llmweir.engine.link import Link
from llmweir.engine.users import Users

pytestmark = pytest.mark.asyncio

CUSTOM = "sk-a-key-of-their-own"


@pytest.fixture
async def ana(api: httpx.AsyncClient, users: Users, link: Link) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client with the key of an internal user."""
    made = await call(api, "/user/new", user_id="ana")
    async with client_of(api_of(users, link)) as client:
        client.headers = httpx.Headers(bearer(made["key"]))
        yield client


@on_real_servers
async def test_nothing_of_a_deleted_user_is_in_the_way_of_the_next(api: httpx.AsyncClient) -> None:
    for _ in range(2):
        await call(api, "/user/new", user_id="eve", user_email="eve@b.c", auto_create_key=False)
        await call(api, "/key/generate", user_id="eve", key=CUSTOM, key_alias="phone")
        assert (await api.get("/user/info", headers=bearer(CUSTOM))).status_code == 200
        assert await call(api, "/user/delete", user_ids=["eve"]) == 1
        assert (await api.get("/user/info", headers=bearer(CUSTOM))).status_code == 401
        assert (await read(api, "/key/list"))["keys"] == []


@on_valkey
@pytest.mark.parametrize(
    ("address", "other", "is_same"),
    [
        pytest.param("ana@b.c", "ANA@B.C", True, id="case"),
        pytest.param("ÉMILE@b.c", "émile@b.c", True, id="case of another letter"),
        pytest.param("strasse@b.c", "straße@b.c", False, id="sharp s"),
        pytest.param("kim@b.c", "\u212aim@b.c", False, id="Kelvin sign"),
        pytest.param("ida@b.c", "\u0130da@b.c", False, id="dotted I"),
        pytest.param("ida@b.c", "\u0131da@b.c", False, id="dotless i"),
        pytest.param("sam@b.c", "\u017fam@b.c", False, id="long s"),
        pytest.param("fi@b.c", "\ufb01@b.c", False, id="ligature"),
    ],
)
async def test_addresses_that_differ_in_more_than_case_are_different_people(
    api: httpx.AsyncClient, address: str, other: str, is_same: bool
) -> None:
    await call(api, "/user/new", user_id="first", user_email=address)
    assert (await api.post("/user/update", json={"user_email": other, "rpm_limit": 1})).is_success is is_same
    second = await api.post("/user/new", json={"user_email": other})
    assert second.status_code == (409 if is_same else 200)


@on_valkey
@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/key/generate", {}, id="another key"),
        pytest.param("/key/update", {"key": "THIS", "duration": None}, id="its own life"),
        pytest.param("/key/update", {"key": "THIS", "duration": "100d"}, id="its own life, in days"),
        pytest.param("/key/THIS/regenerate", {"duration": "100d"}, id="its successor's life"),
        pytest.param("/key/update", {"key_alias": "second", "duration": None}, id="another key's life"),
        pytest.param("/key/SECOND/regenerate", {}, id="another key's successor"),
    ],
)
async def test_a_key_that_expires_cannot_outlive_itself(
    ana: httpx.AsyncClient, path: str, body: dict[str, str | None]
) -> None:
    expiring = await call(ana, "/key/generate", duration="1d")
    second = await call(ana, "/key/generate", duration="2d", key_alias="second")
    ana.headers = httpx.Headers(bearer(expiring["key"]))
    sent = json.loads(json.dumps(body).replace("THIS", expiring["key"]))
    path = path.replace("THIS", expiring["token"]).replace("SECOND", second["token"])
    assert (await ana.post(path, json=sent)).status_code == 403
    renewed = await call(ana, f"/key/{expiring['token']}/regenerate")
    assert renewed["expires"] == expiring["expires"]


@on_valkey
async def test_a_user_cannot_fill_the_store_with_keys(api: httpx.AsyncClient, ana: httpx.AsyncClient) -> None:
    for _ in range(MAX_OWN_KEYS - 1):
        await call(ana, "/key/generate")
    refused = await ana.post("/key/generate", json={})
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "auth_error")
    await call(api, "/key/generate", user_id="ana")


@on_valkey
async def test_a_quoted_line_feed_is_a_character_like_any_other(api: httpx.AsyncClient) -> None:
    page = await api.get("/invite/a%0Ab")
    assert (page.status_code, page.headers["content-type"]) == (410, "text/html; charset=utf-8")
    assert (await api.get("/user/list%0A")).status_code == 404
    assert (await api.post("/key/sk-a%0Ab/regenerate")).json()["error"]["param"] == "key"


@on_valkey
async def test_no_log_line_and_no_refusal_tells_a_secret(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    password, wrong = "a very secret password", "sk-a-wrong-secret-key"
    async with staged(url, tmp_path) as stage:
        stage.http.headers = httpx.Headers(bearer(MASTER_KEY))
        made = await call(stage.http, "/user/new", user_id="ana", password=password, user_email="ana@secret.mail")
        key = (await call(stage.http, "/key/generate", user_id="ana", key=CUSTOM))["key"]
        refusals = [
            await stage.http.post("/user/new", json={"password": [password], "rpm_limit": -1}),
            await stage.http.post("/user/new", json={"user_email": "two@secret@mail", "password": password + "\n"}),
            await stage.http.post("/user/new", json={"user_email": "ANA@secret.mail", "password": password}),
            await stage.http.post("/key/generate", json={"user_id": "ana", "key": key}),
            await stage.http.get("/key/info", params={"key": wrong}),
            await stage.http.post(f"/key/{wrong}/regenerate"),
            await stage.http.get("/user/list", headers=bearer(wrong)),
            await stage.http.get("/user/list", headers=bearer(key)),
            await stage.http.get(f"/invite/{wrong}"),
        ]
    assert [answer.status_code for answer in refusals] == [422, 422, 409, 409, 404, 404, 401, 403, 410]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("llmweir")]
    assert ours != []
    told = "\n".join([*ours, *(answer.text for answer in refusals)])
    secrets = (MASTER_KEY, password, wrong, key, made["key"], made["token_id"], "secret.mail", "secret@mail")
    assert [secret for secret in secrets if secret in told] == []
