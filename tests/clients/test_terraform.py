"""The calls of the Terraform providers for LiteLLM, as they make them, and what they need of the answers."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

Json = dict[str, Any]


def post(admin: httpx.Client, path: str, body: Json, status: int = 200) -> Any:
    headers = {"accept": "application/json", "litellm-changed-by": "terraform"}
    answer = admin.post(path, json=body, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


def get(admin: httpx.Client, path: str, status: int = 200) -> Any:
    answer = admin.get(path, headers={"content-type": "application/json", "accept": "application/json"})
    assert answer.status_code == status, answer.text
    return answer.json()


def whole(value: object) -> bool:
    """What Go takes for an int."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


CREATE: Json = {
    "user_id": "ana",
    "user_alias": "Ana",
    "user_email": "Ana@example.org",
    "user_role": "internal_user",
    "budget_duration": "30d",
    "max_budget": 100.0,
    "tpm_limit": 5000,
    "rpm_limit": 50,
    "auto_create_key": True,
    "teams": ["search"],
    "models": ["gpt-4o"],
    "metadata": {"cost_center": "42"},
}


def test_a_user_is_made_and_read_back(admin: httpx.Client) -> None:
    made = post(admin, "/user/new", CREATE)
    assert (made["user_id"], made["key"][:3]) == ("ana", "sk-")
    found = get(admin, "/user/info?user_id=ana")["user_info"]
    sent = {name: value for name, value in CREATE.items() if name != "auto_create_key"}
    assert {name: found[name] for name in sent} == sent
    assert all(whole(found[name]) for name in ("tpm_limit", "rpm_limit", "max_parallel_requests"))


def test_every_apply_sends_true_for_a_key_and_makes_none(admin: httpx.Client) -> None:
    post(admin, "/user/new", CREATE)
    for _ in range(3):
        update = {**CREATE, "rpm_limit": 51, "blocked": False, "models": [], "metadata": {}}
        del update["teams"]
        answer = post(admin, "/user/update", update)
        assert answer["user_id"] == "ana"
        assert "key" not in answer
    info = get(admin, "/user/info?user_id=ana")
    assert len(info["keys"]) == 1
    found = info["user_info"]
    assert (found["rpm_limit"], found["models"], found["metadata"], found["teams"]) == (51, [], {}, ["search"])


def test_a_user_that_is_there_is_adopted_by_email(admin: httpx.Client) -> None:
    post(admin, "/user/new", {**CREATE, "auto_create_key": False})
    post(admin, "/user/new", {"user_id": "other", "user_email": "anana@example.org", "auto_create_key": False})
    refused = post(admin, "/user/new", {**CREATE, "user_id": "second"}, status=409)
    assert refused["error"]["code"] == "409"
    listed = get(admin, "/user/list?user_email=Ana%40example.org&page=1&page_size=100")
    assert listed["total_pages"] == 1
    [user_id] = [row["user_id"] for row in listed["users"] if row["user_email"] == "Ana@example.org"]
    current = get(admin, f"/user/info?user_id={user_id}")["user_info"]
    assert (current["user_id"], current["user_email"]) == ("ana", "Ana@example.org")
    adoption = {name: value for name, value in CREATE.items() if name not in ("teams", "auto_create_key")}
    post(admin, "/user/update", {**adoption, "user_id": user_id, "rpm_limit": 7})
    assert get(admin, "/user/info?user_id=ana")["user_info"]["rpm_limit"] == 7


def test_teams_are_joined_and_left_by_their_own_calls(admin: httpx.Client) -> None:
    post(admin, "/user/new", CREATE)
    post(admin, "/team/member_add", {"team_id": "ads", "member": {"role": "user", "user_id": "ana"}})
    post(admin, "/team/member_delete", {"team_id": "search", "user_id": "ana"})
    for _ in range(2):
        assert get(admin, "/user/info?user_id=ana")["user_info"]["teams"] == ["ads"]


def test_a_list_of_members_answers_with_their_records(admin: httpx.Client) -> None:
    post(admin, "/user/new", CREATE)
    member = {"user_id": "ana", "user_email": "", "role": "user"}
    answer = post(admin, "/team/member_add", {"team_id": "ads", "member": [member], "max_budget_in_team": 0})
    [row] = answer["updated_users"]
    assert (row["user_id"], row["user_email"], row["teams"]) == ("ana", "Ana@example.org", ["search", "ads"])
    assert answer["team_id"] == "ads"
    assert isinstance(answer["updated_team_memberships"], list)
    post(admin, "/team/member_delete", {"team_id": "ads", "user_id": "ana", "user_email": ""})
    assert get(admin, "/user/info?user_id=ana")["user_info"]["teams"] == ["search"]


def test_a_destroyed_user_is_gone_and_destroying_it_again_is_404(admin: httpx.Client) -> None:
    post(admin, "/user/new", CREATE)
    assert post(admin, "/user/delete", {"user_ids": ["ana"]}) == 1
    get(admin, "/user/info?user_id=ana", status=404)
    post(admin, "/user/delete", {"user_ids": ["ana"]}, status=404)


@pytest.mark.parametrize("count", [0, 1, 101])
def test_a_data_source_of_users_reads_every_page_of_a_hundred(admin: httpx.Client, count: int) -> None:
    for number in range(count):
        post(admin, "/user/new", {"user_id": f"u{number:03}", "auto_create_key": False})
    seen: list[str] = []
    page = 1
    while True:
        listed = get(admin, f"/user/list?page={page}&page_size=100&sort_by=user_id&sort_order=asc")
        assert (listed["total"], listed["page"], listed["page_size"]) == (count, page, 100)
        seen += [row["user_id"] for row in listed["users"]]
        if page >= listed["total_pages"]:
            break
        page += 1
    assert seen == [f"u{number:03}" for number in range(count)]


def test_a_data_source_of_keys_names_each_by_its_hash(admin: httpx.Client) -> None:
    tokens = [post(admin, "/key/generate", {"key_alias": f"k{number}"})["token_id"] for number in range(3)]
    listed = get(admin, "/key/list?page=1&size=100&return_full_object=true&sort_by=token&sort_order=asc")
    assert (listed["total_count"], listed["current_page"], listed["total_pages"]) == (3, 1, 1)
    assert sorted(row["token"] for row in listed["keys"]) == sorted(tokens)
    assert all(whole(row["tpm_limit"]) and isinstance(row["blocked"], bool) for row in listed["keys"])


ZERO_VALUES: Json = {
    "team_id": "", "metadata": {}, "budget_duration": "", "key_alias": "", "aliases": {}, "permissions": {},
    "model_max_budget": {}, "model_rpm_limit": {}, "model_tpm_limit": {}, "blocked": False,
}  # fmt: skip


def test_a_key_with_gos_empty_values_is_made_read_by_hash_changed_and_deleted(admin: httpx.Client) -> None:
    post(admin, "/user/new", {**CREATE, "auto_create_key": False})
    made = post(admin, "/key/generate", {"models": None, "user_id": "ana", "blocked": False, "max_budget": 2.5})
    token = made["token_id"]
    assert token == hashlib.sha256(made["key"].encode()).hexdigest()
    assert get(admin, f"/key/info?key={token}")["info"]["max_budget"] == 2.5
    post(admin, "/key/update", {"key": token, **ZERO_VALUES, "rpm_limit": 9})
    info = get(admin, f"/key/info?key={token}")["info"]
    assert (info["rpm_limit"], info["max_budget"], info["key_alias"], info["team_id"]) == (9, 2.5, None, None)
    assert post(admin, "/key/delete", {"keys": [token]}) == {"deleted_keys": [token]}
    get(admin, f"/key/info?key={token}", status=404)


def test_a_key_with_false_for_a_mail_is_made_and_found_by_alias(admin: httpx.Client) -> None:
    body = {"key_alias": "ci", "models": ["gpt-4o"], "send_invite_email": False, "blocked": False, "rpm_limit": 5}
    made = post(admin, "/key/generate", body)
    assert {"key", "key_name", "token", "token_id", "models", "user_id", "spend", "metadata", "aliases"} <= made.keys()
    query = "page=1&size=10&key_alias=ci&return_full_object=true&include_team_keys=false&sort_order=desc"
    [row] = get(admin, f"/key/list?{query}")["keys"]
    assert row["token"] == made["token_id"]
    post(admin, "/key/update", {**body, "key": made["token_id"], "rpm_limit": 6})
    assert get(admin, f"/key/info?key={made['key']}")["info"]["rpm_limit"] == 6


def test_a_key_of_a_team_without_models_may_call_what_its_user_may(admin: httpx.Client) -> None:
    post(admin, "/user/new", {**CREATE, "auto_create_key": False})
    made = post(admin, "/key/generate", {"user_id": "ana", "team_id": "search", "models": ["all-team-models"]})
    assert made["key"].startswith("sk-")
    assert get(admin, f"/key/info?key={made['key']}")["info"]["models"] == ["all-team-models"]
