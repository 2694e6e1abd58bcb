"""`llmweir key`: how a key is named, what each command sends, and all of it against a real gate."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.backends import on_valkey
from tests.cli.canned import MINTED, ROW, TOKEN, Call, Canned, Reply, canned, done, gate, run
from tests.harness import MASTER_KEY

SECRET = "sk-some-key-in-clear-0123"
SECRETS_HASH = hashlib.sha256(SECRET.encode()).hexdigest()


def keys_of_ana(call: Call) -> Reply:
    """Answers any call about the one key that there is; a list holds a key too that the filter should have left out."""
    if call.path == "/key/list":
        rows = [{**ROW, "key_alias": "ci-2", "token": "a" * 64}, ROW]
        return Reply({"keys": rows, "total_count": 2, "current_page": 1, "total_pages": 1})
    if call.path == "/key/info":
        return Reply({"key": TOKEN, "info": ROW})
    if call.path == "/key/generate" or call.path.endswith("/regenerate"):
        return Reply({**ROW, **MINTED})
    return Reply({"deleted_keys": call.body["keys"]} if call.path == "/key/delete" else ROW)


@pytest.fixture
def server() -> Iterator[Canned]:
    with canned(keys_of_ana) as server:
        yield server


# How a key is named


NAMES = [
    pytest.param(TOKEN, "", TOKEN, id="by its hash"),
    pytest.param("ci", "", TOKEN, id="by its alias"),
    pytest.param(SECRET, "", SECRETS_HASH, id="by itself"),
    pytest.param("-", SECRET + "\n", SECRETS_HASH, id="by itself, from standard input"),
]


@pytest.mark.parametrize(("name", "typed", "token"), NAMES)
def test_a_key_is_named_in_each_of_the_ways_and_never_sent_in_clear(
    server: Canned, name: str, typed: str, token: str
) -> None:
    def last(*words: str) -> Call:
        result = run(server.url, "key", *words, typed=typed)
        assert result.exit_code == 0, result.output
        assert SECRET not in result.output
        return server.calls[-1]

    assert last("info", name).query == {"key": [token]}
    assert last("update", name, "--rpm-limit", "5").body == {"key": token, "rpm_limit": 5}
    assert last("block", name).body == {"key": token}
    assert last("unblock", name).body == {"key": token}
    assert last("delete", name, "--yes").body == {"keys": [token]}
    assert last("regenerate", name).path == f"/key/{token}/regenerate"
    assert SECRET not in repr(server.calls)


def test_without_a_name_the_info_is_about_the_key_that_is_called_with(server: Canned) -> None:
    assert run(server.url, "key", "info").exit_code == 0
    assert [(call.path, call.query) for call in server.calls] == [("/key/info", {})]


def test_an_alias_that_no_key_has_is_3_and_changes_nothing(server: Canned) -> None:
    result = run(server.url, "key", "delete", "ci", "c\x1b", "--yes")
    assert (result.exit_code, result.stderr) == (3, "Error: There is no key with the alias c\\x1b.\n")
    assert {call.path for call in server.calls} == {"/key/list"}
    assert server.calls[0].query == {
        "key_alias": ["ci"], "return_full_object": ["true"], "page": ["1"], "size": ["100"],
    }  # fmt: skip


def test_keys_are_deleted_in_one_call_each_once(server: Canned) -> None:
    result = run(server.url, "key", "delete", "ci", TOKEN, SECRET, "--yes")
    assert (result.stdout, server.body) == ("Deleted 2 keys.\n", {"keys": [TOKEN, SECRETS_HASH]})


def test_a_key_given_in_clear_is_not_repeated(server: Canned) -> None:
    assert run(server.url, "key", "block", SECRET).stdout == "Blocked sk-...0123.\n"
    assert run(server.url, "key", "unblock", "-", typed=SECRET).stdout == "Unblocked the key from standard input.\n"


# What is sent, how it reads


def test_a_new_key_takes_every_kind_of_field_and_is_shown_once(server: Canned) -> None:
    words = [
        "--user-id", "ana", "--key-alias", "ci", "--duration", "30d", "--models", "gpt-4o", "--aliases", "fast=gpt-4o",
        "--metadata", '{"a": 1}', "--rpm-limit", "5", "--max-budget", "0.5", "--blocked", "--secret-stdin",
    ]  # fmt: skip
    said = run(server.url, "key", "new", *words, typed=SECRET + "\n").stdout
    assert server.calls[0].path == "/key/generate"
    assert server.body == {
        "user_id": "ana", "key_alias": "ci", "duration": "30d", "models": ["gpt-4o"], "aliases": {"fast": "gpt-4o"},
        "metadata": {"a": 1}, "rpm_limit": 5, "max_budget": 0.5, "blocked": True, "key": SECRET,
    }  # fmt: skip
    assert said.splitlines()[-3:] == [f"  {TOKEN}", "The API key, shown this once:", MINTED["key"]]
    assert SECRET not in said


def test_a_new_key_in_the_place_of_an_old_one_takes_changes_along(server: Canned) -> None:
    words = ["--rpm-limit", "9", "--clear", "duration", "--secret-stdin"]
    said = run(server.url, "key", "regenerate", TOKEN, *words, typed=SECRET).stdout
    assert server.body == {"rpm_limit": 9, "duration": None, "new_key": SECRET}
    assert said.splitlines()[-1] == MINTED["key"]


def test_an_update_renames_clears_and_shows_the_row_without_a_key(server: Canned) -> None:
    said = run(server.url, "key", "update", "ci", "--key-alias", "build", "--clear", "rpm_limit").stdout
    assert server.body == {"key": TOKEN, "key_alias": "build", "rpm_limit": None}
    assert "The API key" not in said


def test_a_key_reads_in_80_columns_with_its_hash_whole(server: Canned) -> None:
    said = run(server.url, "key", "info", "ci").stdout
    lines = [" ".join(line.strip("│ ").split()) for line in said.splitlines()]
    assert max(map(len, said.splitlines())) <= 80
    assert "sk-...abcd" in lines[0]
    for line in ("key_alias ci", "user_id ana", "blocked yes", "spend 1.50 USD", "max_budget -", "expires -", TOKEN):
        assert line in lines, said


STATES = [
    pytest.param({"blocked": True, "expires": "2020-01-01T00:00:00.000Z"}, "blocked", id="blocked"),
    pytest.param({"blocked": False, "expires": "2020-01-01T00:00:00.000Z"}, "expired", id="expired"),
    pytest.param({"blocked": False, "expires": "2999-01-01T00:00:00.000Z"}, "active", id="not yet expired"),
    pytest.param({"blocked": False, "expires": None}, "active", id="for ever"),
]


@pytest.mark.parametrize(("fields", "state"), STATES)
def test_a_list_says_whether_a_key_lets_anybody_in(fields: dict[str, Any], state: str) -> None:
    with canned({"keys": [{**ROW, **fields}], "total_count": 1, "current_page": 1, "total_pages": 1}) as server:
        said = run(server.url, "key", "list").stdout
    assert said.splitlines()[1].split() == ["sk-...abcd", "5", "-", "-", "1.50", "-", state]
    assert said.splitlines()[4:] == [f"  {TOKEN}", "Page 1 of 1, 1 key."]


def test_a_list_is_filtered_by_the_server(server: Canned) -> None:
    words = ["--user-id", "ana", "--key-alias", "ci", "--team-id", "t", "--page", "3", "--page-size", "7"]
    assert run(server.url, "key", "list", *words).exit_code == 0
    assert server.calls[0].query == {
        "user_id": ["ana"], "key_alias": ["ci"], "team_id": ["t"], "page": ["3"], "size": ["7"],
        "return_full_object": ["true"],
    }  # fmt: skip


def test_json_is_the_servers_own_text(server: Canned) -> None:
    said = run(server.url, "key", "info", TOKEN, "--json").stdout
    assert json.loads(said) == {"key": TOKEN, "info": ROW}


WRONG = [
    pytest.param(["update", TOKEN], "There is nothing to change", id="nothing to change"),
    pytest.param(["block"], "Missing argument 'KEY'", id="no key named"),
    pytest.param(["delete", "ci"], "There is no terminal to confirm on; give --yes", id="nobody to confirm"),
    pytest.param(["block", "-"], "There is no line to read on standard input.", id="nothing to read"),
    pytest.param(["new", "--secret", "sk-x"], "No such option", id="a key as a word"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_a_wrong_use_is_2_and_nothing_is_sent(server: Canned, words: list[str], sentence: str) -> None:
    result = run(server.url, "key", *words)
    assert (result.exit_code, server.calls) == (2, [])
    assert sentence in " ".join(result.stderr.split())


# Against a real gate


@pytest.fixture
def real(url: str, tmp_path: Path) -> Iterator[str]:
    with gate(url, tmp_path) as address:
        done(address, "user", "new", "ana", "--no-auto-create-key")
        yield address


def minted(said: str) -> str:
    key = said.splitlines()[-1]
    assert re.fullmatch(r"sk-\S{16,}", key), said
    return key


def status_of(address: str, key: str) -> int:
    """How the data plane answers a key: 200 where it lets it in; nobody is behind, and so 502."""
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.get(f"{address}/v1/models", headers=headers)
    return 200 if answer.status_code == 502 else answer.status_code


def row_of(address: str, name: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(done(address, "key", "info", name, "--json"))["info"]
    return row


@on_valkey
def test_every_field_arrives_at_a_real_server(real: str) -> None:
    done(
        real, "key", "new", "--user-id", "ana", "--key-alias", "ci", "--duration", "30d", "--models", "gpt-4o",
        "--aliases", "fast=gpt-4o", "--metadata", '{"a": 1}', "--team-id", "t", "--rpm-limit", "5", "--tpm-limit", "6",
        "--max-parallel-requests", "7", "--max-budget", "0.5", "--budget-duration", "1d", "--spend", "0.1", "--blocked",
    )  # fmt: skip
    expected = {
        "user_id": "ana", "key_alias": "ci", "models": ["gpt-4o"], "aliases": {"fast": "gpt-4o"}, "metadata": {"a": 1},
        "team_id": "t", "rpm_limit": 5, "tpm_limit": 6, "max_parallel_requests": 7, "max_budget": 0.5,
        "budget_duration": "1d", "spend": 0.1, "blocked": True,
    }  # fmt: skip
    row = row_of(real, "ci")
    assert {name: row[name] for name in expected} == expected
    done(real, "key", "update", "ci", "--no-blocked", "--key-alias", "build", "--clear", "rpm_limit")
    row = row_of(real, "build")
    assert (row["blocked"], row["rpm_limit"], row["tpm_limit"]) == (False, None, 6)


@on_valkey
def test_a_whole_life_on_a_real_server(real: str) -> None:
    key = minted(done(real, "key", "new", "--user-id", "ana", "--key-alias", "ci"))
    assert status_of(real, key) == 200
    done(real, "key", "block", "-", typed=key)
    assert status_of(real, key) == 403
    done(real, "key", "unblock", "ci")
    assert status_of(real, key) == 200
    renewed = minted(done(real, "key", "regenerate", "ci"))
    assert (status_of(real, key), status_of(real, renewed)) == (401, 200)
    assert "Page 1 of 1, 1 key." in done(real, "key", "list", "--user-id", "ana")
    assert done(real, "key", "delete", "ci", "--yes") == "Deleted 1 key.\n"
    assert status_of(real, renewed) == 401


@on_valkey
@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param(["new", "--user-id", "nobody"], 3, id="no such user"),
        pytest.param(["info", "f" * 64], 3, id="no such key"),
        pytest.param(["info", "no-alias"], 3, id="no such alias"),
        pytest.param(["new", "--user-id", "ana", "--key-alias", "ci"], 4, id="an alias taken"),
        pytest.param(["new", "--user-id", "ana", "--rpm-limit", "-1"], 1, id="refused"),
    ],
)
def test_a_real_server_refuses_with_the_exit_codes(real: str, words: list[str], code: int) -> None:
    done(real, "key", "new", "--user-id", "ana", "--key-alias", "ci")
    result = run(real, "key", *words, key=MASTER_KEY)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("Error: ")


@on_valkey
def test_a_user_keeps_their_own_keys_and_no_other_with_their_own_key(real: str) -> None:
    own = minted(done(real, "key", "new", "--user-id", "ana", "--key-alias", "own"))
    done(real, "key", "new", "--key-alias", "another")
    assert "key_alias              own" in done(real, "key", "info", key=own)
    minted(done(real, "key", "new", "--key-alias", "second", key=own))
    assert "2 keys." in done(real, "key", "list", "--all", key=own)
    done(real, "key", "delete", "second", "--yes", key=own)
    assert run(real, "key", "block", "another", key=own).exit_code == 3  # it is not told whether there is one
    assert run(real, "key", "update", "own", "--rpm-limit", "9", key=own).exit_code == 5


@on_valkey
def test_every_key_of_a_real_server_is_listed_once(real: str) -> None:
    for number in range(5):
        done(real, "key", "new", "--user-id", "ana", "--key-alias", f"key-{number}")
    pages = done(real, "key", "list", "--all", "--page-size", "2", "--json").splitlines()
    aliases = [row["key_alias"] for page in pages for row in json.loads(page)["keys"]]
    assert (len(pages), sorted(aliases)) == (3, [f"key-{number}" for number in range(5)])
