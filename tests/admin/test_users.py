"""The routes of users: what each answers, with the keys, passwords and deprecated fields that belong to a call."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest
import redis
from tests.admin.serving import bearer, call, read
from tests.backends import on_valkey

from llmweir.admin.invites import Invites
from llmweir.admin.passwords import Passwords
from llmweir.admin.shapes import UserRow
from llmweir.admin.user_changes import UserChanges
from llmweir.engine.api_keys import ApiKeys, MintedKey
from llmweir.engine.invitations import Invitations
from llmweir.engine.link import Link
from llmweir.engine.users import Users
from llmweir.errors import ConflictError
from llmweir.key_records import NewKey
from llmweir.records import NewUser, UserRecord, as_json

pytestmark = pytest.mark.asyncio


async def info(api: httpx.AsyncClient, user_id: str) -> Any:
    return await read(api, "/user/info", user_id=user_id)


@on_valkey
async def test_a_new_user_is_answered_with_the_record_and_a_key_shown_once(api: httpx.AsyncClient) -> None:
    made = await call(api, "/user/new", user_id="ana", rpm_limit=5, key_alias="laptop", duration="1d")
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
    made = await call(api, "/user/new", user_id="ana", auto_create_key=False)
    assert (made["key"], made["key_name"], made["token_id"], made["expires"]) == ("", None, None, None)
    assert (await info(api, "ana"))["keys"] == []


@on_valkey
async def test_the_answers_have_every_field_of_the_record(api: httpx.AsyncClient) -> None:
    made = await call(api, "/user/new", user_id="ana")
    flat = await read(api, "/v2/user/info", user_id="ana")
    assert set(flat) == set(UserRow.__annotations__) == set(made) - {"key", "key_name", "token_id", "expires"}
    assert (await info(api, "ana"))["user_info"] == flat
    blank = UserRecord(user_id="ana", created_at_ms=0, updated_at_ms=0)
    assert set(as_json(blank)) == set(UserRow.__annotations__)


@on_valkey
async def test_an_update_answers_with_the_whole_record(api: httpx.AsyncClient) -> None:
    await call(api, "/user/new", user_id="ana", rpm_limit=5, teams=["a"])
    updated = await call(api, "/user/update", user_id="ana", tpm_limit=7)
    assert updated["user_id"] == "ana"
    assert (updated["data"]["rpm_limit"], updated["data"]["tpm_limit"]) == (5, 7)
    assert "key" not in updated
    assert (await info(api, "ana"))["teams"] == ["a"]


@on_valkey
async def test_an_update_finds_its_user_by_email(api: httpx.AsyncClient) -> None:
    await call(api, "/user/new", user_id="ana", user_email="Ana@example.com")
    assert (await call(api, "/user/update", user_email="ana@EXAMPLE.com", rpm_limit=1))["user_id"] == "ana"


@on_valkey
async def test_an_update_names_and_prolongs_the_only_key(api: httpx.AsyncClient) -> None:
    made = await call(api, "/user/new", user_id="ana")
    assert "key" not in await call(api, "/user/update", user_id="ana", key_alias="phone", duration="2d")
    row = (await info(api, "ana"))["keys"][0]
    assert (row["token"], row["key_alias"], row["expires"]) == (made["token_id"], "phone", "2027-01-17T08:00:00.000Z")
    await call(api, "/user/update", user_id="ana", key_alias="phone")  # its own name is not taken


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
    await call(api, "/user/new", user_id="ana")
    updated = await call(api, "/user/update", user_id="ana", auto_create_key=True, **fields)
    assert ("key" in updated) == makes_one
    assert len((await info(api, "ana"))["keys"]) == 1 + makes_one


@on_valkey
async def test_an_update_makes_the_first_key(api: httpx.AsyncClient) -> None:
    await call(api, "/user/new", user_id="ana", auto_create_key=False)
    made = await call(api, "/user/update", user_id="ana", auto_create_key=True)
    assert (await api.get("/user/info", headers=bearer(made["key"]))).json()["user_id"] == "ana"


@on_valkey
async def test_applying_the_same_again_changes_nothing(api: httpx.AsyncClient) -> None:
    same = {"user_id": "ana", "user_email": "a@b.c", "max_budget": 0.1, "blocked": False, "auto_create_key": True}
    await call(api, "/user/new", **same)
    first = await call(api, "/user/update", **same)
    second = await call(api, "/user/update", **same)
    assert {**first["data"], "updated_at": ""} == {**second["data"], "updated_at": ""}
    assert (second["data"]["max_budget"], len((await info(api, "ana"))["keys"])) == (0.1, 1)


@on_valkey
async def test_a_password_is_kept_as_a_hash_and_never_shown(api: httpx.AsyncClient, url: str) -> None:
    made = await call(api, "/user/new", user_id="ana", password="open sesame")
    assert "password" not in made
    with redis.from_url(url) as client:
        kept = client.hget("lw:{u:ana}:doc", "password_hash")
        everything = b"".join(client.dump(key) for key in client.scan_iter())
    assert isinstance(kept, bytes)
    assert kept.startswith(b"$argon2id$")
    assert b"open sesame" not in everything


@on_valkey
@pytest.mark.parametrize(("field", "value"), [("config", {"a": 1}), ("team_id", "t")])
async def test_a_deprecated_field_is_taken_and_the_answer_says_so(
    api: httpx.AsyncClient, field: str, value: object
) -> None:
    answer = await api.post("/user/new", json={"user_id": "ana", field: value})
    assert (answer.status_code, answer.headers["deprecation"]) == (200, "@1767225600")
    assert "deprecation" not in (await api.post("/user/update", json={"user_id": "ana", "rpm_limit": 1})).headers


@on_valkey
async def test_delete_answers_a_bare_number_and_counts_everybody_once(api: httpx.AsyncClient) -> None:
    keys = [(await call(api, "/user/new", user_id=user_id))["key"] for user_id in ("ana", "bob", "eve")]
    assert await call(api, "/user/delete", user_ids=["ana", "bob", "ana"]) == 2
    statuses = [(await api.get("/user/info", headers=bearer(key))).status_code for key in keys]
    assert statuses == [401, 401, 200]
    assert (await api.get("/user/info?user_id=ana")).status_code == 404
    assert (await call(api, "/user/new", user_id="ana"))["user_id"] == "ana"


@on_valkey
async def test_block_and_unblock_say_who_of_those_named_is_blocked_now(api: httpx.AsyncClient) -> None:
    key = (await call(api, "/user/new", user_id="ana"))["key"]
    assert await call(api, "/user/block", user_ids=["ana", "ana"]) == {"blocked_users": ["ana"]}
    assert (await info(api, "ana"))["user_info"]["blocked"] is True
    assert (await api.get("/user/info", headers=bearer(key))).status_code == 403
    assert await call(api, "/user/unblock", user_ids=["ana"]) == {"blocked_users": []}
    assert (await api.get("/user/info", headers=bearer(key))).status_code == 200


@on_valkey
async def test_the_available_roles_are_those_of_the_record(api: httpx.AsyncClient) -> None:
    roles = await read(api, "/user/available_roles")
    for role in roles:
        assert (await call(api, "/user/new", user_role=role))["user_role"] == role
    assert len(roles) == 6


@on_valkey
async def test_where_the_key_cannot_be_made_there_is_no_user_either(users: Users, link: Link) -> None:
    class TakenMeanwhile(ApiKeys):
        async def mint(self, user_id: str, body: NewKey) -> MintedKey:
            raise ConflictError("A key with this alias exists already.", param="key_alias")

    invites = Invites(None, Invitations(link, users), None, "")
    changes = UserChanges(users, TakenMeanwhile(users), invites, Passwords())
    with pytest.raises(ConflictError):
        await changes.create(NewUser(user_id="ana", user_email="a@b.c", key_alias="phone"))
    assert await users.get("ana") is None
    assert await users.id_of_email("a@b.c") is None
