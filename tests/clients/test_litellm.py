"""LiteLLM's own management clients and its command line against a served gate."""

from __future__ import annotations

import json
import subprocess

import httpx
import pytest
from tests.cli.litellm_stand_in import KEY_ROW, USER_ROW
from tests.clients.conftest import BIN, Clients
from tests.clients.fields import CHANGED, NEW

from llmweir import __version__


def test_a_user_is_made_changed_read_and_deleted(clients: Clients, admin: httpx.Client) -> None:
    made = clients("litellm.users.create_user", {**NEW, "key_alias": "first", "duration": "30d"})
    assert made["user_id"] == "ana"
    assert made["key"].startswith("sk-")
    assert {name: made[name] for name in NEW} == NEW
    changed = clients("litellm.http.request", "POST", "/user/update", json={"user_id": "ana", **CHANGED})
    assert {name: changed["data"][name] for name in CHANGED} == CHANGED
    found = clients("litellm.users.get_user", "ana")
    assert {name: found["user_info"][name] for name in CHANGED} == CHANGED
    flat = clients("litellm.users.get_user_v2", "ana")
    assert {name: flat[name] for name in CHANGED} == CHANGED
    assert clients("litellm.users.delete_user", ["ana"]) == 1
    assert clients.fails("litellm.users.get_user", "ana")[0] == "NotFoundError"
    assert admin.get("/user/list").json()["total"] == 0


def test_users_are_listed(clients: Clients) -> None:
    for user_id in ("ana", "bob"):
        clients("litellm.users.create_user", {"user_id": user_id, "user_email": f"{user_id}@example.org"})
    assert {row["user_id"] for row in clients("litellm.users.list_users")} == {"ana", "bob"}
    [bob] = clients("litellm.users.list_users", {"user_email": "bob@example.org", "page": 1, "page_size": 100})
    assert bob["user_id"] == "bob"


def test_a_key_lives_from_its_making_to_its_end(clients: Clients) -> None:
    clients("litellm.users.create_user", {"user_id": "ana", "auto_create_key": False})
    made = clients(
        "litellm.keys.generate", models=["gpt-4o"], aliases={"fast": "gpt-4o"}, spend=0.5, duration="30d",
        key_alias="ci", team_id="search", user_id="ana", config={},
    )  # fmt: skip
    info = clients("litellm.keys.info", made["token_id"])["info"]
    assert (info["key_alias"], info["models"], info["spend"], info["team_id"]) == ("ci", ["gpt-4o"], 0.5, "search")
    clients(
        "litellm.keys.update", made["key"], models=["o1"], spend=0, duration="1d", key_alias="cd", aliases={"a": "b"}
    )
    listed = clients("litellm.keys.list", page=1, size=10, user_id="ana", return_full_object=True)
    assert [(row["key_alias"], row["models"], row["spend"]) for row in listed["keys"]] == [("cd", ["o1"], 0)]
    assert listed["total_count"] == 1
    assert clients("litellm.keys.list", key_alias="nobody's", include_team_keys=True)["keys"] == []
    assert clients("litellm.keys.delete", keys=[made["key"]]) == {"deleted_keys": [made["key"]]}
    assert clients("litellm.keys.list")["total_count"] == 0


def test_keys_are_deleted_by_alias(clients: Clients) -> None:
    clients("litellm.keys.generate", key_alias="ci")
    clients("litellm.keys.delete", key_aliases=["ci"])
    assert clients("litellm.keys.list")["total_count"] == 0


def test_the_version_of_the_server_is_found(clients: Clients) -> None:
    assert clients("litellm.health.get_server_version") == __version__


def lite(clients: Clients, *words: str) -> str:
    ran = clients("lite", *words)
    assert ran["exit_code"] == 0, ran["output"]
    return str(ran["output"])


def test_the_command_line_makes_shows_lists_and_deletes_users(clients: Clients, admin: httpx.Client) -> None:
    words = ["--email", "ana@example.org", "--role", "proxy_admin_viewer", "--alias", "Ana", "--max-budget", "2.5"]
    made = json.loads(lite(clients, "users", "create", *words, "--team", "ads", "--team", "search"))
    assert (made["user_role"], made["max_budget"], made["teams"]) == ("proxy_admin_viewer", 2.5, ["ads", "search"])
    user_id = made["user_id"]
    shown = lite(clients, "users", "list")
    assert all(word in shown for word in (user_id, "ana@example.org", "proxy_admin_viewer", "ads, search"))
    assert json.loads(lite(clients, "users", "get", "--id", user_id))["user_info"]["user_alias"] == "Ana"
    assert lite(clients, "users", "delete", user_id).strip() == "1"
    assert admin.get("/user/list").json()["users"] == []


def test_the_command_line_makes_lists_and_deletes_keys(clients: Clients) -> None:
    words = ["--models", "gpt-4o,o1", "--aliases", '{"a": "b"}', "--spend", "1.5", "--duration", "24h"]
    made = json.loads(lite(clients, "keys", "generate", *words, "--key-alias", "ci", "--config", "{}"))
    assert (made["models"], made["spend"]) == (["gpt-4o", "o1"], 1.5)
    shown = lite(clients, "keys", "list", "--size", "10", "--key-alias", "ci")
    assert "Showing 1 keys out of 1" in shown
    assert all(word in shown for word in (made["token_id"], "ci", made["user_id"], "1.5"))
    assert json.loads(lite(clients, "keys", "delete", "--keys", made["key"])) == {"deleted_keys": [made["key"]]}


def test_the_command_line_imports_keys_from_an_llmweir(clients: Clients, server: str) -> None:
    clients("litellm.keys.generate", models=["gpt-4o"])
    shown = lite(clients, "keys", "import", "--source-base-url", server, "--source-api-key", "sk-master-of-the-tests")
    assert "Successfully imported: 1" in shown
    assert "Failed to import: 0" in shown


def test_the_command_line_shows_the_error_of_a_refusal(clients: Clients) -> None:
    ran = clients("lite", "keys", "generate", "--budget-id", "b-1")
    assert ran["exit_code"] == 1
    assert "Error: HTTP 422" in ran["output"]
    assert "budget_id" in ran["output"]


def test_the_installed_command_finds_the_servers_version(environment: dict[str, str]) -> None:
    words = [str(BIN / "lite"), "--base-url", environment["SERVER"], "version"]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=50, check=True)
    assert f"LiteLLM Proxy Server Version: {__version__}" in ran.stdout


MODELS = "import json, sys; from litellm.proxy._types import {model} as m; print(json.dumps(sorted(m.model_fields)))"


@pytest.mark.parametrize(
    ("model", "row"), [("LiteLLM_UserTableWithKeyCount", USER_ROW), ("UserAPIKeyAuth", KEY_ROW)], ids=["user", "key"]
)
def test_the_stand_in_of_a_proxy_has_no_field_that_the_proxy_has_not(
    environment: dict[str, str], model: str, row: dict[str, object]
) -> None:
    words = [str(BIN / "python"), "-c", MODELS.format(model=model)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=50, check=True)
    assert row.keys() <= set(json.loads(ran.stdout))
