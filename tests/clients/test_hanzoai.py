"""The generated SDK `hanzoai`, which checks every answer against its own types, against a served gate."""

from __future__ import annotations

import httpx
from tests.clients.conftest import Clients
from tests.clients.fields import CHANGED, NEW


def info_of(admin: httpx.Client, user_id: str) -> dict[str, object]:
    info: dict[str, object] = admin.get("/user/info", params={"user_id": user_id}).json()["user_info"]
    return info


def test_a_user_is_made_with_every_field(clients: Clients, admin: httpx.Client) -> None:
    made = clients("hanzoai.user.create", **NEW, key_alias="first", duration="30d", auto_create_key=True)
    assert made["key"].startswith("sk-")
    assert made["expires"]
    found = info_of(admin, "ana")
    assert {name: found[name] for name in NEW} == NEW
    [key] = admin.get("/user/info", params={"user_id": "ana"}).json()["keys"]
    assert key["key_alias"] == "first"


def test_a_user_without_a_key_answers_with_an_empty_one(clients: Clients) -> None:
    assert clients("hanzoai.user.create", user_id="bob", auto_create_key=False)["key"] == ""


def test_every_field_of_a_user_is_changed(clients: Clients, admin: httpx.Client) -> None:
    clients("hanzoai.user.create", **NEW)
    clients("hanzoai.user.update", user_id="ana", **CHANGED, password="a long password")
    found = info_of(admin, "ana")
    assert {name: found[name] for name in CHANGED} == CHANGED
    assert "password" not in found


def test_a_user_is_found_by_email_to_be_changed(clients: Clients, admin: httpx.Client) -> None:
    clients("hanzoai.user.create", user_id="ana", user_email="ana@example.org")
    clients("hanzoai.user.update", user_email="ANA@example.org", rpm_limit=7)
    assert info_of(admin, "ana")["rpm_limit"] == 7


def test_users_are_read_and_listed(clients: Clients) -> None:
    for user_id in ("ana", "bob"):
        clients("hanzoai.user.create", user_id=user_id, auto_create_key=False)
    assert clients("hanzoai.user.retrieve_info", user_id="ana")["user_info"]["user_id"] == "ana"
    listed = clients("hanzoai.user.list", page=1, page_size=10, role="internal_user", user_ids="ana,bob")
    assert sorted(row["user_id"] for row in listed["users"]) == ["ana", "bob"]
    assert listed["total"] == 2


def test_users_are_deleted(clients: Clients) -> None:
    clients("hanzoai.user.create", user_id="ana")
    assert clients("hanzoai.user.delete", user_ids=["ana"]) == 1
    assert clients.fails("hanzoai.user.retrieve_info", user_id="ana") == ("NotFoundError", 404)


def test_refusals_are_the_sdks_own_errors(clients: Clients) -> None:
    clients("hanzoai.user.create", user_id="ana")
    assert clients.fails("hanzoai.user.create", user_id="ana") == ("ConflictError", 409)
    assert clients.fails("hanzoai.user.update", user_id="nobody", rpm_limit=1) == ("NotFoundError", 404)
    assert clients.fails("hanzoai.user.update", user_id="ana", rpm_limit=-1) == ("UnprocessableEntityError", 422)
    assert clients.fails("hanzoai.user.delete", user_ids=["ana", "nobody"]) == ("NotFoundError", 404)


KEY_FIELDS = {
    "key_alias": "ci",
    "duration": "30d",
    "models": ["gpt-4o"],
    "aliases": {"fast": "gpt-4o"},
    "metadata": {"job": "nightly"},
    "team_id": "search",
    "rpm_limit": 5,
    "tpm_limit": 500,
    "max_parallel_requests": 2,
    "max_budget": 1.5,
    "budget_duration": "1d",
    "spend": 0.25,
    "blocked": False,
}


def test_a_key_is_made_with_every_field(clients: Clients, admin: httpx.Client) -> None:
    clients("hanzoai.user.create", user_id="ana", auto_create_key=False)
    made = clients("hanzoai.key.generate", user_id="ana", **KEY_FIELDS, hanzo_changed_by="somebody")
    assert made["key"].startswith("sk-")
    info = admin.get("/key/info", params={"key": made["key"]}).json()["info"]
    expected = {name: value for name, value in KEY_FIELDS.items() if name != "duration"}
    assert {name: info[name] for name in expected} == expected
    assert info["token"] == made["token_id"]
    assert info["expires"] is not None


def test_a_key_with_nothing_said_has_a_user_of_its_own(clients: Clients, admin: httpx.Client) -> None:
    made = clients("hanzoai.key.generate")
    assert info_of(admin, made["user_id"])["user_id"] == made["user_id"]


def test_what_means_nothing_here_is_taken_when_empty(clients: Clients) -> None:
    empty: dict[str, object] = {
        "allowed_cache_controls": [], "budget_id": None, "config": {}, "enforced_params": [], "guardrails": [],
        "model_max_budget": {}, "model_rpm_limit": None, "model_tpm_limit": {}, "permissions": {},
        "send_invite_email": False, "soft_budget": None, "tags": [],
    }  # fmt: skip
    made = clients("hanzoai.key.generate", **empty)
    assert clients.fails("hanzoai.key.update", key=made["key"], tags=["a"]) == ("UnprocessableEntityError", 422)


def test_a_key_is_changed_blocked_and_let_in_again(clients: Clients, admin: httpx.Client) -> None:
    made = clients("hanzoai.key.generate", key_alias="ci")
    clients("hanzoai.key.update", key=made["key"], key_alias="cd", rpm_limit=9, models=[], metadata={}, duration="1d")
    info = clients("hanzoai.key.retrieve_info", key=made["token_id"])["info"]
    assert (info["key_alias"], info["rpm_limit"]) == ("cd", 9)
    assert clients("hanzoai.key.block", key=made["key"])["blocked"] is True
    clients("hanzoai.key.unblock", key=made["key"])
    assert admin.get("/key/info", params={"key": made["key"]}).json()["info"]["blocked"] is False


def test_a_key_is_replaced_with_a_body_and_without(clients: Clients) -> None:
    made = clients("hanzoai.key.generate", key_alias="ci")
    second = clients("hanzoai.key.regenerate_by_key", made["key"])
    third = clients("hanzoai.key.regenerate_by_key", second["token_id"], duration="1d")
    assert len({made["key"], second["key"], third["key"]}) == 3
    assert clients.fails("hanzoai.key.retrieve_info", key=made["key"]) == ("NotFoundError", 404)


def test_keys_are_listed_as_hashes_and_as_rows(clients: Clients) -> None:
    clients("hanzoai.user.create", user_id="ana", auto_create_key=False)
    made = [clients("hanzoai.key.generate", user_id="ana", key_alias=alias) for alias in ("one", "two")]
    tokens = sorted(key["token_id"] for key in made)
    hashes = clients("hanzoai.key.list", user_id="ana")
    assert sorted(hashes["keys"]) == tokens
    rows = clients("hanzoai.key.list", user_id="ana", return_full_object=True, include_team_keys=False, page=1, size=1)
    assert (rows["total_count"], rows["current_page"], rows["total_pages"]) == (2, 1, 2)
    assert rows["keys"][0]["token"] in tokens
    [named] = clients("hanzoai.key.list", key_alias="two", return_full_object=True)["keys"]
    assert named["key_alias"] == "two"


def test_keys_are_deleted_by_name_and_by_alias(clients: Clients) -> None:
    made = clients("hanzoai.key.generate", key_alias="one")
    clients("hanzoai.key.generate", key_alias="two")
    assert clients("hanzoai.key.delete", keys=[made["key"]]) == {"deleted_keys": [made["key"]]}
    clients("hanzoai.key.delete", key_aliases=["two"])
    assert clients("hanzoai.key.list")["total_count"] == 0


def test_members_of_teams_come_and_go(clients: Clients, admin: httpx.Client) -> None:
    for user_id in ("ana", "bob"):
        clients("hanzoai.user.create", user_id=user_id, auto_create_key=False)
    answer = clients("hanzoai.team.add_member", team_id="ads", member={"role": "user", "user_id": "ana"})
    assert answer["team_id"] == "ads"
    assert [row["user_id"] for row in answer["updated_users"]] == ["ana"]
    clients("hanzoai.team.add_member", team_id="ads", member=[{"role": "user", "user_id": "bob"}])
    assert info_of(admin, "ana")["teams"] == info_of(admin, "bob")["teams"] == ["ads"]
    clients("hanzoai.team.remove_member", team_id="ads", user_id="ana")
    assert info_of(admin, "ana")["teams"] == []
