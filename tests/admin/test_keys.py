"""The routes of API keys: what each call answers, who may make it, and how each wrong one is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import httpx
import pytest
from tests.admin.parts import a_key, a_user, done, problem
from tests.admin.serving import MASTER, bearer
from tests.backends import Clock, on_valkey

from llmweir.admin.key_shapes import DeletedKeys, KeyInfo, KeyList, KeyRow, MintedRow
from llmweir.engine.users import Users
from llmweir.key_records import KEY_LIMITS

pytestmark = on_valkey

NOWHERE = "ab" * 32


def token_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
async def ana(users: Users) -> dict[str, str]:
    """Who presents a key without limits of its own, an `internal_user`."""
    return await a_user(users, "ana")


async def row_of(api: httpx.AsyncClient, key: str) -> dict[str, Any]:
    row: dict[str, Any] = (done(await api.get("/key/info", params={"key": key})))["info"]
    return row


async def works(api: httpx.AsyncClient, key: str) -> bool:
    return (await api.get("/key/info", headers=bearer(key))).status_code == 200


async def test_a_new_key_is_answered_with_its_row_and_shown_once(api: httpx.AsyncClient, users: Users) -> None:
    await a_user(users, "ana")
    body: dict[str, Any] = {
        "user_id": "ana", "key_alias": "laptop", "duration": "1d", "models": ["gpt-*"], "aliases": {"fast": "gpt-4o"},
        "metadata": {"a": [1]}, "team_id": "red", "rpm_limit": 1, "tpm_limit": 2, "max_parallel_requests": 3,
        "max_budget": 0.1, "budget_duration": "30d", "spend": 0.05,
    }  # fmt: skip
    made = done(await api.post("/key/generate", json=body))
    assert {name: made[name] for name in body if name != "duration"} == {
        name: value for name, value in body.items() if name != "duration"
    }
    assert made["token_id"] == made["token"] == token_of(made["key"])
    assert made["key_name"] == f"sk-...{made['key'][-4:]}"
    assert made["expires"] == "2027-01-16T08:00:00.000Z"
    assert (made["blocked"], made["created_at"]) == (False, "2027-01-15T08:00:00.000Z")
    assert made.keys() == MintedRow.__annotations__.keys() | KeyRow.__annotations__.keys()
    info = done(await api.get("/key/info", params={"key": made["token"]}))
    assert made["key"] not in json.dumps(info)
    assert info == {
        "key": made["token"],
        "info": {name: value for name, value in made.items() if name not in ("key", "token_id")},
    }
    assert info["info"]["budget_reset_at"] == "2027-02-14T08:00:00.000Z"


async def test_a_key_without_a_user_gets_a_new_one(api: httpx.AsyncClient, users: Users) -> None:
    first, second = [done(await api.post("/key/generate", json={})) for _ in range(2)]
    assert first["user_id"] != second["user_id"]
    user = await users.get(first["user_id"])
    assert user is not None
    assert [key.token for key in user.keys] == [first["token"]]
    assert await works(api, first["key"])


async def test_no_user_stays_behind_where_the_key_cannot_be_made(api: httpx.AsyncClient, users: Users) -> None:
    await a_user(users, "ana")
    await a_key(users, "ana", key_alias="taken")
    assert problem(await api.post("/key/generate", json={"key_alias": "taken"})) == (409, "key_alias")
    listed = done(await api.get("/key/list", params={"return_full_object": "true"}))
    assert {row["user_id"] for row in listed["keys"]} == {"ana"}


async def test_a_key_of_an_unknown_user_is_not_made(api: httpx.AsyncClient) -> None:
    assert problem(await api.post("/key/generate", json={"user_id": "nobody"})) == (404, "user_id")


async def test_a_key_may_be_chosen_and_is_unique(api: httpx.AsyncClient, ana: dict[str, str]) -> None:
    body = {"user_id": "ana", "key": "sk-a/b c%2f".replace(" ", "") + "x" * 16}
    made = done(await api.post("/key/generate", json=body))
    assert made["key"] == body["key"]
    assert await works(api, made["key"])
    assert problem(await api.post("/key/generate", json=body)) == (409, "key")
    assert problem(await api.post("/key/generate", json={"key": body["key"]})) == (409, "key")


async def test_an_alias_names_one_key(api: httpx.AsyncClient, ana: dict[str, str]) -> None:
    done(await api.post("/key/generate", json={"user_id": "ana", "key_alias": "laptop"}))
    again = await api.post("/key/generate", json={"user_id": "ana", "key_alias": "laptop"})
    assert problem(again) == (409, "key_alias")


@pytest.mark.parametrize("path", ["/key/generate", "/key/update", "/key/block", "/key/delete", "/key/x/regenerate"])
async def test_what_is_not_known_is_refused(api: httpx.AsyncClient, path: str) -> None:
    assert problem(await api.post(path, json={"unheard_of": None, "key": None}))[0] == 422


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/key/update", {}),
        ("/key/update", {"rpm_limit": 1}),
        ("/key/block", {}),
        ("/key/unblock", {"key": "sk-a", "key_alias": "a"}),
        ("/key/delete", {}),
        ("/key/delete", {"keys": [], "key_aliases": None}),
        ("/key/delete", {"keys": ["sk-a"] * 501}),
        ("/key/delete", {"keys": [""]}),
    ],
)
async def test_a_call_that_names_no_key_is_refused(api: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    assert (await api.post(path, json=body)).status_code == 422


async def test_an_update_changes_what_is_sent_and_answers_the_row(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str]
) -> None:
    key = await a_key(users, "ana", key_alias="laptop", rpm_limit=5, metadata={"a": 1}, models=["gpt-*"])
    row = done(await api.post("/key/update", json={"key": key, "tpm_limit": 7, "metadata": None}))
    assert (row["rpm_limit"], row["tpm_limit"], row["metadata"], row["key_alias"]) == (5, 7, {}, "laptop")
    assert row == await row_of(api, key)
    renamed = done(await api.post("/key/update", json={"key": row["token"], "key_alias": "phone", "spend": 2}))
    assert (renamed["key_alias"], renamed["spend"]) == ("phone", 2)
    by_alias = done(await api.post("/key/update", json={"key_alias": "phone", "blocked": True, "models": []}))
    assert (by_alias["token"], by_alias["blocked"], by_alias["models"]) == (row["token"], True, [])


async def test_an_update_that_only_names_the_key_changes_nothing(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str]
) -> None:
    key = await a_key(users, "ana", key_alias="laptop", duration="1d", max_budget=1, budget_duration="1d")
    before = await row_of(api, key)
    inert: dict[str, Any] = {"key": key, "user_id": "ana", "tags": [], "budget_id": None}
    assert done(await api.post("/key/update", json=inert)) == before


async def test_a_life_is_prolonged_and_ended_from_now_on(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str], clock: Clock
) -> None:
    key = await a_key(users, "ana", duration="1d")
    clock.advance(seconds=3_600)
    row = done(await api.post("/key/update", json={"key": key, "duration": "2d"}))
    assert row["expires"] == "2027-01-17T09:00:00.000Z"
    assert (done(await api.post("/key/update", json={"key": key, "duration": None})))["expires"] is None
    done(await api.post("/key/update", json={"key": key, "duration": "1s"}))
    assert await works(api, key)
    clock.advance(seconds=1)
    assert not await works(api, key)


async def test_a_key_stays_with_its_user(api: httpx.AsyncClient, users: Users, ana: dict[str, str]) -> None:
    await a_user(users, "bob")
    key = await a_key(users, "ana")
    assert problem(await api.post("/key/update", json={"key": key, "user_id": "bob"})) == (422, "user_id")
    assert problem(await api.post(f"/key/{key}/regenerate", json={"user_id": "bob"})) == (422, "user_id")
    assert (await row_of(api, key))["user_id"] == "ana"


async def test_a_blocked_key_is_refused_at_once_and_let_in_again(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str]
) -> None:
    key = await a_key(users, "ana", key_alias="laptop")
    assert (done(await api.post("/key/block", json={"key": key})))["blocked"] is True
    refused = await api.get("/key/info", headers=bearer(key))
    assert refused.status_code == 403
    assert (done(await api.post("/key/unblock", json={"key_alias": "laptop"})))["blocked"] is False
    assert await works(api, key)


async def test_a_regenerated_key_keeps_its_row_and_the_old_one_is_dead(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str]
) -> None:
    key = await a_key(users, "ana", key_alias="laptop", rpm_limit=5, max_budget=1, spend=0.5, models=["gpt-*"])
    before = await row_of(api, key)
    made = done(await api.post(f"/key/{key}/regenerate"))
    assert made["key"] != key
    assert (made["token"], made["token_id"]) == (token_of(made["key"]), token_of(made["key"]))
    moved = {"token": made["token"], "key_name": f"sk-...{made['key'][-4:]}"}
    assert await row_of(api, made["key"]) == before | moved
    assert not await works(api, key)
    assert await works(api, made["key"])
    assert problem(await api.get("/key/info", params={"key": key})) == (404, "key")
    assert (await row_of(api, made["token"]))["key_alias"] == "laptop"


async def test_a_key_is_regenerated_by_its_hash_with_changes_and_as_chosen(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str]
) -> None:
    key = await a_key(users, "ana", rpm_limit=5)
    body = {"new_key": "sk-" + "y" * 20, "rpm_limit": 6, "key_alias": "phone", "grace_period": ""}
    made = done(await api.post(f"/key/{token_of(key)}/regenerate", json=body))
    assert (made["key"], made["rpm_limit"], made["key_alias"]) == (body["new_key"], 6, "phone")
    again = await api.post(f"/key/{made['token']}/regenerate", json={"new_key": ana["authorization"][7:]})
    assert problem(again) == (409, "key")
    assert await works(api, made["key"])
    assert problem(await api.post(f"/key/{NOWHERE}/regenerate")) == (404, "key")


@pytest.mark.parametrize(
    ("body", "param"), [({"key_alias": "taken"}, "key_alias"), ({"new_key": "sk-" + "taken" * 4}, "key")]
)
async def test_a_key_that_cannot_be_regenerated_lives_on(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str], body: dict[str, str], param: str
) -> None:
    await a_key(users, "ana", key="sk-" + "taken" * 4, key_alias="taken")
    key = await a_key(users, "ana", key_alias="laptop")
    before = await row_of(api, key)
    assert problem(await api.post(f"/key/{key}/regenerate", json=body)) == (409, param)
    assert await works(api, key)
    assert await row_of(api, key) == before


async def test_keys_are_deleted_by_any_of_their_names(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str]
) -> None:
    first, second = await a_key(users, "ana"), await a_key(users, "ana")
    third = await a_key(users, "ana", key_alias="laptop")
    body = {"keys": [first, token_of(second), token_of(first)], "key_aliases": ["laptop"]}
    answer = done(await api.post("/key/delete", json=body))
    assert answer == {"deleted_keys": [first, token_of(second), token_of(first), "laptop"]}
    assert answer.keys() == DeletedKeys.__annotations__.keys()
    assert not any([await works(api, key) for key in (first, second, third)])
    assert (done(await api.get("/key/list")))["total_count"] == 1
    assert problem(await api.post("/key/delete", json={"keys": None, "key_aliases": ["laptop"]})) == (
        404,
        "key_aliases",
    )


@pytest.mark.parametrize(
    ("unknown", "param"), [({"keys": [NOWHERE]}, "keys"), ({"key_aliases": ["unknown"]}, "key_aliases")]
)
async def test_one_unknown_key_and_none_is_deleted(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str], unknown: dict[str, list[str]], param: str
) -> None:
    key = await a_key(users, "ana")
    body = {"keys": [key, *unknown.get("keys", [])], "key_aliases": unknown.get("key_aliases", [])}
    assert problem(await api.post("/key/delete", json=body)) == (404, param)
    assert await works(api, key)


@pytest.mark.parametrize("path", ["/key/update", "/key/block", "/key/unblock"])
async def test_an_unknown_key_is_not_found(api: httpx.AsyncClient, path: str) -> None:
    assert problem(await api.post(path, json={"key": NOWHERE})) == (404, "key")
    assert problem(await api.post(path, json={"key_alias": "unknown"})) == (404, "key_alias")


async def test_info_is_of_the_presented_key_where_none_is_named(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str]
) -> None:
    key = await a_key(users, "ana", key_alias="laptop")
    answer = done(await api.get("/key/info", headers=bearer(key)))
    assert (answer["key"], answer["info"]["key_alias"]) == (token_of(key), "laptop")
    assert answer.keys() == KeyInfo.__annotations__.keys()
    assert problem(await api.get("/key/info")) == (400, "key")
    assert (done(await api.get("/key/info", params={"key": key})))["key"] == key


async def test_keys_are_listed_newest_first_a_page_at_a_time(
    api: httpx.AsyncClient, users: Users, clock: Clock
) -> None:
    await a_user(users, "ana")
    tokens = []
    for number in range(12):
        clock.advance(seconds=1)
        tokens.append(token_of(await a_key(users, "ana", key_alias=f"key {number}", team_id="red")))
    first = done(await api.get("/key/list"))
    assert first == {"keys": tokens[:1:-1], "total_count": 13, "current_page": 1, "total_pages": 2}
    assert first.keys() == KeyList.__annotations__.keys()
    second = done(await api.get("/key/list", params={"page": 2, "size": 12, "return_full_object": True}))
    assert [(row["user_id"], row["key_alias"]) for row in second["keys"]] == [("ana", None)]
    assert second["keys"][0].keys() == KeyRow.__annotations__.keys()
    red = done(await api.get("/key/list", params={"team_id": "red", "size": 5, "page": 3}))
    assert (red["keys"], red["total_count"], red["total_pages"]) == (tokens[1::-1], 12, 3)


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ({"user_id": "ana"}, 2),
        ({"user_id": "bob"}, 1),
        ({"user_id": "nobody"}, 0),
        ({"key_alias": "laptop"}, 1),
        ({"user_id": "bob", "key_alias": "laptop"}, 0),
        ({"user_id": "", "organization_id": "unknown parameters are ignored"}, 3),
    ],
)
async def test_a_list_is_narrowed_by_user_and_alias(
    api: httpx.AsyncClient, users: Users, query: dict[str, str], keys: int
) -> None:
    await a_user(users, "ana")
    await a_user(users, "bob")
    await a_key(users, "ana", key_alias="laptop")
    listed = done(await api.get("/key/list", params=query))
    assert (len(listed["keys"]), listed["total_count"]) == (keys, keys)


@pytest.mark.parametrize(
    ("name", "value"), [("page", "0"), ("size", "101"), ("size", "x"), ("page", "1" * 30), ("return_full_object", "ja")]
)
async def test_a_bad_parameter_of_a_list_is_named(api: httpx.AsyncClient, name: str, value: str) -> None:
    assert problem(await api.get("/key/list", params={name: value})) == (422, [["query", name]])


async def test_users_make_change_block_and_delete_their_own_keys(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str]
) -> None:
    made = done(await api.post("/key/generate", json={"key_alias": "laptop", "models": ["gpt-*"]}, headers=ana))
    assert made["user_id"] == "ana"
    change = {"key": made["key"], "key_alias": "phone", "duration": "1d", "metadata": {"a": 1}, "aliases": {"f": "g"}}
    changed = done(await api.post("/key/update", json=change, headers=ana))
    assert (changed["key_alias"], changed["aliases"]) == ("phone", {"f": "g"})
    done(await api.post("/key/block", json={"key": made["key"]}, headers=ana))
    done(await api.post("/key/unblock", json={"key": made["key"]}, headers=ana))
    again = done(await api.post(f"/key/{made['token']}/regenerate", headers=ana))
    assert done(await api.get("/key/list", params={"key_alias": "phone"}, headers=ana)) == {
        "keys": [again["token"]], "total_count": 1, "current_page": 1, "total_pages": 1
    }  # fmt: skip
    done(await api.post("/key/delete", json={"keys": [again["token"]]}, headers=ana))
    assert (done(await api.get("/key/list", headers=ana)))["total_count"] == 1


@pytest.mark.parametrize("limit", sorted(KEY_LIMITS))
async def test_users_never_set_a_limit_nor_what_is_spent(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str], limit: str
) -> None:
    value = "1d" if limit == "budget_duration" else 1
    key = await a_key(users, "ana", **{limit: value})
    made = await api.post("/key/generate", json={limit: value}, headers=ana)
    assert problem(made) == (403, limit)
    for sent in (value, None):
        assert problem(await api.post("/key/update", json={"key": key, limit: sent}, headers=ana)) == (403, limit)
        moved = await api.post(f"/key/{token_of(key)}/regenerate", json={limit: sent}, headers=ana)
        assert problem(moved) == (403, limit)
    assert (await row_of(api, key))[limit] == value


@pytest.mark.parametrize(
    ("models", "is_within"),
    [
        pytest.param(["gpt-4o"], True, id="one of a prefix"),
        pytest.param(["gpt-4*", "claude"], True, id="a longer prefix"),
        pytest.param(["gpt-*", "claude"], True, id="the same"),
        pytest.param(["no-default-models"], True, id="none"),
        pytest.param([], False, id="all"),
        pytest.param(None, False, id="cleared"),
        pytest.param(["claude", "all-team-models"], False, id="all by another word"),
        pytest.param(["claude-opus"], False, id="more than an exact name"),
        pytest.param(["gpt*"], False, id="a shorter prefix"),
        pytest.param(["claude*"], False, id="a prefix of an exact name"),
        pytest.param(["gpt-4o", "gemini"], False, id="one of several"),
    ],
)
async def test_users_allow_a_key_no_more_models_than_it_has(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str], models: list[str] | None, is_within: bool
) -> None:
    key = await a_key(users, "ana", models=["gpt-*", "claude"])
    answer = await api.post("/key/update", json={"key": key, "models": models}, headers=ana)
    if is_within:
        assert (done(answer))["models"] == models
    else:
        assert problem(answer) == (403, "models")
        assert (await row_of(api, key))["models"] == ["gpt-*", "claude"]


@pytest.mark.parametrize("models", [[], ["all-team-models"]])
async def test_users_narrow_a_key_that_allows_all_models(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str], models: list[str]
) -> None:
    key = await a_key(users, "ana", models=models)
    narrowed = done(await api.post("/key/update", json={"key": key, "models": ["gpt-*"]}, headers=ana))
    assert narrowed["models"] == ["gpt-*"]


@pytest.mark.parametrize(
    "fields", [{"rpm_limit": 1}, {"tpm_limit": 1}, {"max_parallel_requests": 1}, {"max_budget": 1}, {"models": ["a"]}]
)
async def test_a_key_with_limits_of_its_own_makes_no_key_without(
    api: httpx.AsyncClient, users: Users, ana: dict[str, str], fields: dict[str, Any]
) -> None:
    held = await a_key(users, "ana", **fields)
    assert problem(await api.post("/key/generate", json={}, headers=bearer(held))) == (403, None)
    free = token_of(ana["authorization"].removeprefix("Bearer "))
    assert problem(await api.post(f"/key/{free}/regenerate", headers=bearer(held))) == (403, None)
    moved = done(await api.post(f"/key/{token_of(held)}/regenerate", headers=bearer(held)))
    assert {name: moved[name] for name in fields} == fields


@pytest.mark.parametrize("holder", ["internal_user", "proxy_admin_viewer"])
async def test_another_users_key_is_nobodys_to_change(api: httpx.AsyncClient, users: Users, holder: str) -> None:
    eve = await a_user(users, "eve", user_role=holder)
    await a_user(users, "ana")
    key = await a_key(users, "ana", key_alias="laptop")
    own = await a_key(users, "eve")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/key/generate", {"user_id": "ana"}),
        ("/key/generate", {"user_id": "nobody"}),
        ("/key/update", {"key": key, "key_alias": "mine"}),
        ("/key/update", {"key_alias": "laptop", "metadata": {}}),
        ("/key/block", {"key": key}),
        ("/key/unblock", {"key_alias": "laptop"}),
        ("/key/delete", {"keys": [own, key]}),
        ("/key/delete", {"key_aliases": ["laptop"]}),
        (f"/key/{key}/regenerate", {}),
    ]
    for path, body in calls:
        answer = await api.post(path, json=body, headers=eve)
        assert answer.status_code == 403, (path, answer.text)
    assert (await row_of(api, key))["key_alias"] == "laptop"
    assert await works(api, own)


async def test_users_see_their_own_keys_and_viewers_all(api: httpx.AsyncClient, users: Users) -> None:
    ana, viewer = await a_user(users, "ana"), await a_user(users, "vic", user_role="proxy_admin_viewer")
    theirs = await a_key(users, "vic", key_alias="theirs")
    assert problem(await api.get("/key/info", params={"key": theirs}, headers=ana)) == (403, "key")
    assert problem(await api.get("/key/list", params={"user_id": "vic"}, headers=ana)) == (403, "user_id")
    assert (done(await api.get("/key/list", headers=ana)))["total_count"] == 1
    by_alias = done(await api.get("/key/list", params={"key_alias": "theirs"}, headers=ana))
    assert by_alias == {"keys": [], "total_count": 0, "current_page": 1, "total_pages": 0}
    assert (done(await api.get("/key/list", headers=viewer)))["total_count"] == 3
    own = token_of(ana["authorization"].removeprefix("Bearer "))
    assert (done(await api.get("/key/info", params={"key": own}, headers=viewer)))["info"]["user_id"] == "ana"


@pytest.mark.parametrize(
    ("role", "reads", "makes"),
    [
        ("proxy_admin", True, True),
        ("proxy_admin_viewer", True, False),
        ("internal_user", True, True),
        ("internal_user_viewer", True, False),
        ("team", False, False),
        ("customer", False, False),
    ],
)
async def test_a_role_may_do_what_its_row_says(
    api: httpx.AsyncClient, users: Users, role: str, reads: bool, makes: bool
) -> None:
    header = await a_user(users, "ana", user_role=role)
    for path in ("/key/info", "/key/list"):
        assert (await api.get(path, headers=header)).status_code == (200 if reads else 403)
    assert (await api.post("/key/generate", json={}, headers=header)).status_code == (200 if makes else 403)


async def test_an_admin_changes_every_key_and_its_limits(api: httpx.AsyncClient, users: Users) -> None:
    await a_user(users, "ana")
    admin = await a_user(users, "root", user_role="proxy_admin")
    key = await a_key(users, "ana", models=["gpt-4o"])
    row = done(
        await api.post("/key/update", json={"key": key, "models": [], "rpm_limit": 9, "spend": 1}, headers=admin)
    )
    assert (row["models"], row["rpm_limit"], row["spend"], row["user_id"]) == ([], 9, 1, "ana")
    made = done(await api.post("/key/generate", json={"user_id": "ana", "max_budget": 1}, headers=admin))
    assert (made["user_id"], made["max_budget"]) == ("ana", 1)


async def test_nobody_gets_in_without_a_key(api: httpx.AsyncClient) -> None:
    for header in ({"authorization": ""}, bearer("sk-unknown-unknown")):
        assert (await api.get("/key/list", headers=header)).status_code == 401
        assert (await api.post("/key/generate", json={}, headers=header)).status_code == 401


async def test_many_keys_made_at_once_have_one_alias_between_them(api: httpx.AsyncClient, users: Users) -> None:
    await a_user(users, "ana")
    body = {"user_id": "ana", "key_alias": "laptop"}
    answers = await asyncio.gather(*(api.post("/key/generate", json=body) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
    listed = done(await api.get("/key/list", params={"user_id": "ana"}))
    assert listed["total_count"] == 2


async def test_the_master_key_is_no_key_of_a_user(api: httpx.AsyncClient) -> None:
    assert problem(await api.get("/key/info", params={"key": MASTER})) == (404, "key")
