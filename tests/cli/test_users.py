"""`llmweir user`: what each command sends, how the answer reads, and all of it against a real gate."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from pydantic import BaseModel
from tests.backends import on_valkey
from tests.cli.canned import MINTED, ROW, TOKEN, USER, Call, Canned, Reply, canned, done, gate, process, run
from tests.harness import MASTER_KEY

from llmweir.cli import main, remote, tables
from llmweir.cli.field_options import flag_of
from llmweir.cli.field_shapes import shapes_of
from llmweir.cli.field_words import WORDS
from llmweir.cli.plain_text import counted, usd
from llmweir.key_records import KeyRegeneration, KeyUpdate, NewKey
from llmweir.record_fields import Name, RequestBody, Whole
from llmweir.records import NewUser, UserUpdate

PATIENCE_S = 30.0
DOCS = (Path(__file__).parents[2] / "docs/cli.md").read_text()
BODIES = [
    pytest.param("user", "new", NewUser, frozenset(), id="user new"),
    pytest.param("user", "update", UserUpdate, frozenset(), id="user update"),
    pytest.param("key", "new", NewKey, frozenset(), id="key new"),
    pytest.param("key", "update", KeyUpdate, frozenset({"key"}), id="key update"),
    pytest.param("key", "regenerate", KeyRegeneration, frozenset(), id="key regenerate"),
]


@pytest.fixture
def server() -> Iterator[Canned]:
    with canned({**USER, "key": "", "user_id": "ana", "data": USER}) as server:
        yield server


# Every field is an option


def options_of(group: str, command: str) -> set[str]:
    found = main.commands[group].commands[command]  # type: ignore[attr-defined]
    return {flag for option in found.params for flag in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize(("group", "command", "model", "named_otherwise"), BODIES)
def test_every_field_of_the_body_is_an_option(
    group: str, command: str, model: type[BaseModel], named_otherwise: frozenset[str]
) -> None:
    options = options_of(group, command)
    fields = set(model.model_fields) - named_otherwise
    assert [name for name in fields if not {flag_of(name), f"{flag_of(name)}-stdin"} & options] == []


@pytest.mark.parametrize(("group", "command", "model", "named_otherwise"), BODIES)
def test_every_field_has_words_in_the_help(
    group: str, command: str, model: type[BaseModel], named_otherwise: frozenset[str]
) -> None:
    silent = [shape.name for shape in shapes_of(model) if not (shape.description or shape.name in WORDS)]
    assert silent == []


def test_no_words_are_kept_for_a_field_that_is_gone() -> None:
    fields = {name for body in BODIES for name in body.values[2].model_fields}  # type: ignore[union-attr]
    assert set(WORDS) - fields == set()


def test_a_new_field_of_any_shape_has_an_option_by_itself() -> None:
    class Body(RequestBody):
        label: Name | None = None
        depth: Whole | None = None
        quotas: dict[str, list[int]] | None = None
        strange: list[int] | None = None
        nothing: None = None

    assert [(shape.name, shape.kind) for shape in shapes_of(Body)] == [
        ("label", "text"), ("depth", "number"), ("quotas", "json"), ("strange", "json"),
    ]  # fmt: skip


# The docs


@pytest.mark.parametrize("group", ["user", "key"])
def test_every_command_stands_in_the_docs_and_no_other(group: str) -> None:
    found = main.commands[group]
    assert isinstance(found, click.Group)
    assert sorted(re.findall(rf"^\| `llmweir {group} ([a-z]+)", DOCS, re.MULTILINE)) == sorted(found.commands)


def test_every_exit_code_stands_in_the_docs_and_no_other() -> None:
    codes = {0, remote.INTERRUPTED, click.UsageError.exit_code, remote.RefusedError.exit_code}
    codes |= {kind.exit_code for kind in remote.RefusedError.__subclasses__()}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", DOCS, re.MULTILINE)} == codes


# What is sent


SENT = [
    pytest.param(["--user-alias", "Ana = 1"], {"user_alias": "Ana = 1"}, id="text"),
    pytest.param(["--rpm-limit", "60"], {"rpm_limit": 60}, id="a whole number"),
    pytest.param(["--max-budget", "0.1"], {"max_budget": 0.1}, id="money"),
    pytest.param(["--user-role", "proxy_admin"], {"user_role": "proxy_admin"}, id="a choice"),
    pytest.param(["--blocked"], {"blocked": True}, id="yes"),
    pytest.param(["--no-blocked"], {"blocked": False}, id="no"),
    pytest.param(["--models", "gpt-4o", "--models", "o1*"], {"models": ["gpt-4o", "o1*"]}, id="a list"),
    pytest.param(
        ["--model-rpm-limit", "gpt-4o=100", "--model-rpm-limit", "o1*=5"],
        {"model_rpm_limit": {"gpt-4o": 100, "o1*": 5}},
        id="limits by model",
    ),
    pytest.param(["--aliases", "fast=a=b"], {"aliases": {"fast": "a=b"}}, id="a dict of texts, cut at the first ="),
    pytest.param(["--aliases", '{"a=b": "c"}'], {"aliases": {"a=b": "c"}}, id="a dict as JSON"),
    pytest.param(
        ["--model-max-budget", "a=2.5", "--model-max-budget", 'b={"max_budget": 1, "budget_duration": "1d"}'],
        {"model_max_budget": {"a": 2.5, "b": {"max_budget": 1, "budget_duration": "1d"}}},
        id="budgets by model, plain and with a period",
    ),
    pytest.param(["--metadata", '{"a": [1, null]}'], {"metadata": {"a": [1, None]}}, id="a free dict"),
    pytest.param(["--metadata", "{}"], {"metadata": {}}, id="an empty dict"),
    pytest.param(["--max-budget", "1e3"], {"max_budget": 1000.0}, id="an exponent"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "fields"), SENT)
def test_options_are_sent_as_fields(server: Canned, words: list[str], fields: dict[str, Any]) -> None:
    for command in ("new", "update"):
        assert run(server.url, "user", command, "ana", *words).exit_code == 0
        assert server.calls[-1].path == f"/user/{command}"
        assert server.body == {"user_id": "ana", **fields}


def test_an_update_clears_fields_with_null_and_leaves_the_rest_out(server: Canned) -> None:
    result = run(server.url, "user", "update", "ana", "--clear", "rpm_limit", "--clear", "model-rpm-limit")
    assert result.exit_code == 0
    assert server.body == {"user_id": "ana", "rpm_limit": None, "model_rpm_limit": None}


def test_an_update_finds_its_user_by_email(server: Canned) -> None:
    assert run(server.url, "user", "update", "--user-email", "a@b.org", "--rpm-limit", "1").exit_code == 0
    assert server.body == {"user_email": "a@b.org", "rpm_limit": 1}


def test_a_password_comes_from_standard_input(server: Canned) -> None:
    result = run(server.url, "user", "new", "--user-id", "ana", "--password-stdin", typed="correct hörse\r\nmore\n")
    assert server.body == {"user_id": "ana", "password": "correct hörse"}
    assert "correct" not in result.output


def test_a_password_that_is_no_utf_8_is_2(server: Canned) -> None:
    result = run(server.url, "user", "new", "--password-stdin", typed=b"\xff\n")
    assert (result.exit_code, server.calls) == (2, [])
    assert result.stderr.endswith("Error: Standard input is not UTF-8.\n")


WRONG = [
    pytest.param(["new", "--rpm-limit", "many"], "'many' is not a number.", id="no number"),
    pytest.param(["new", "--rpm-limit", "true"], "'true' is not a number.", id="a truth value"),
    pytest.param(["new", "--max-budget", "NaN"], "'NaN' is not a number.", id="NaN"),
    pytest.param(["new", "--max-budget", "1e999"], "'1e999' is not a number.", id="too great a number"),
    pytest.param(["new", "--metadata", "a=1"], "this is not a JSON object", id="no JSON"),
    pytest.param(["new", "--metadata", "[1]"], "this is not a JSON object", id="JSON that is no object"),
    pytest.param(["new", "--metadata", '{"a": Infinity}'], "this is not a JSON object", id="infinity in JSON"),
    pytest.param(["new", "--metadata", "[" * 100_000], "this is not a JSON object", id="JSON too deep"),
    pytest.param(["new", "--model-rpm-limit", "gpt-4o"], "'gpt-4o' is not NAME=VALUE.", id="no value"),
    pytest.param(["new", "--model-rpm-limit", "=4"], "'=4' is not NAME=VALUE.", id="no name"),
    pytest.param(["new", "--model-rpm-limit", "a=b"], "'b' is not a number.", id="no number in a dict"),
    pytest.param(["new", "--user-role", "king"], "'king' is not one of", id="no choice"),
    pytest.param(["new", "--user-alias", "\udcff"], "this is not UTF-8.", id="no UTF-8"),
    pytest.param(["new", "ana", "--user-id", "ben"], "The id of the user is given twice.", id="two ids"),
    pytest.param(["new", "--password", "hunter22"], "No such option", id="a password as a word"),
    pytest.param(["new", "--ask-password"], "no terminal to ask on; use --password-stdin.", id="nobody to ask"),
    pytest.param(["new", "--password-stdin"], "There is no line to read on standard input.", id="nothing to read"),
    pytest.param(["new", "--ask-password", "--password-stdin"], "two ways to do the same", id="asked and read"),
    pytest.param(["update", "--rpm-limit", "1"], "Name the user, by id or by --user-email.", id="nobody named"),
    pytest.param(["update", "ana"], "There is nothing to change", id="nothing to change"),
    pytest.param(["update", "--user-email", "a@b"], "There is nothing to change", id="an email that only finds"),
    pytest.param(["update", "ana", "--clear", "user_id"], "'user_id' is none of", id="no id is no user"),
    pytest.param(["update", "ana", "--clear", "reserved"], "'reserved' is none of user_email,", id="no field to clear"),
    pytest.param(
        ["update", "ana", "--rpm-limit", "1", "--clear", "rpm_limit"],
        "--rpm-limit and --clear rpm_limit contradict each other.",
        id="set and cleared",
    ),
    pytest.param(["delete", "ana"], "There is no terminal to confirm on; give --yes", id="nobody to confirm"),
    pytest.param(["delete", "--yes"], "Missing argument 'USER_ID...'", id="nobody to delete"),
    pytest.param(["list", "--all", "--page", "2"], "--all shows every page; leave out --page.", id="all and one"),
    pytest.param(["list", "--page-size", "101"], "101 is not in the range", id="too large a page"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_a_wrong_use_is_2_and_nothing_is_sent(server: Canned, words: list[str], sentence: str) -> None:
    result = run(server.url, "user", *words)
    assert (result.exit_code, server.calls) == (2, [])
    assert sentence in " ".join(result.stderr.split())


def test_lists_of_ids_go_in_one_call() -> None:
    with canned({"blocked_users": ["ana", "ben"]}) as server:
        assert run(server.url, "user", "block", "ana", "ben").stdout == "Blocked ana, ben.\n"
        assert run(server.url, "user", "unblock", "ana").stdout == "Unblocked ana.\n"
    assert [(call.path, call.body) for call in server.calls] == [
        ("/user/block", {"user_ids": ["ana", "ben"]}),
        ("/user/unblock", {"user_ids": ["ana"]}),
    ]


def test_with_yes_deleting_asks_nobody() -> None:
    with canned(Reply(2)) as server:
        result = run(server.url, "user", "delete", "ana", "ben", "--yes")
    assert (result.exit_code, result.stdout) == (0, "Deleted 2 users.\n")
    assert (server.calls[0].path, server.body) == ("/user/delete", {"user_ids": ["ana", "ben"]})


# How it reads


def test_a_record_reads_in_80_columns_with_money_in_usd_and_a_dash_for_no_limit() -> None:
    with canned({"user_id": "ana", "user_info": USER, "keys": [ROW], "teams": []}) as server:
        said = run(server.url, "user", "info", "ana").stdout
    lines = [" ".join(line.strip("│ ").split()) for line in said.splitlines()]
    assert max(map(len, said.splitlines())) <= 80
    for line in (
        "max_budget 25.00 USD", "spend 0.0000138 USD", "rpm_limit 60", "max_parallel_requests -", "soft_budget -",
        "models all", "teams search, ads", "blocked no", "model_rpm_limit gpt-4o: 10",
        "model_max_budget gpt-4o: 2.50 USD", 'o1*: {"max_budget": 1, "budget_duration": "1d"}',
        "metadata note: [red]not markup[/]", "sk-...abcd 5 - - 1.50 - blocked", "alias: ci", ROW["token"],
    ):  # fmt: skip
        assert line in lines, said
    assert not [line for line in lines if line.startswith(("model_spend", "permissions"))]


def test_a_minted_key_stands_alone_on_a_line_once() -> None:
    with canned({**USER, **MINTED}) as server:
        said = run(server.url, "user", "new", "ana").stdout
    assert said.splitlines()[-2:] == ["The API key, shown this once:", MINTED["key"]]
    assert said.count(str(MINTED["key"])) == 1


def test_what_a_record_holds_cannot_steer_the_terminal() -> None:
    hostile = {**USER, "user_alias": "\x1b]0;x\x07", "metadata": {"\x9bm": "\u202e"}}
    with canned({"user_info": hostile, "keys": [{**ROW, "key_alias": "\x1b[2J"}]}) as server:
        said = run(server.url, "user", "info", "ana").stdout
    assert [char for char in said if not char.isprintable() and char != "\n"] == []
    assert "\\x1b]0;x\\x07" in said


def test_json_is_the_servers_own_text() -> None:
    text = b'{"user_id":"ana", "max_budget":0.10,\n "x":"\\u00e9"}'
    with canned(Reply(text)) as server:
        for words in (["new", "ana"], ["info", "ana"], ["usage", "ana"], ["block", "ana"], ["delete", "ana", "--yes"]):
            assert run(server.url, "user", *words, "--json").stdout == text.decode() + "\n"


def test_usage_shows_each_limit() -> None:
    limits = [
        {"name": "rpm", "model": None, "limit": 60, "used": 3, "reserved": 0, "remaining": 57, "reset_ms": 3123},
        {"name": "model_budget", "model": "o1*", "limit": 2.5, "used": 1, "reserved": 0.01, "remaining": 1.49,
         "reset_ms": None},
        {"name": "rpm", "model": None, "limit": 5, "used": 1, "reserved": 0, "remaining": 4, "reset_ms": 9,
         "key": TOKEN},
    ]  # fmt: skip
    with canned({"user_id": "ana", "limits": limits, "binding": None}) as server:
        said = run(server.url, "user", "usage", "ana").stdout
    assert [line.split() for line in said.splitlines()[1:]] == [
        ["rpm", "-", "3", "0", "60", "57", "4s"],
        ["model_budget", "USD", "o1*", "1.00", "0.01", "2.50", "1.49", "-"],
        ["rpm", "(key", "3f3f3f3f...)", "-", "1", "0", "5", "4", "1s"],
    ]


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0.00 USD"), (25, "25.00 USD"), (0.1, "0.10 USD"), (1e-09, "0.000000001 USD")]
)
def test_an_amount_reads_exact(amount: float, text: str) -> None:
    assert usd(amount) == text


def test_one_is_no_plural() -> None:
    assert (counted(1, "user"), counted(2, "user")) == ("1 user", "2 users")


# Lists


def three_pages(call: Call) -> Reply:
    page = int(call.query["page"][0])
    users = [{**USER, "user_id": f"user-{page}-{number}"} for number in range(2 if page < 3 else 1)]
    return Reply({"users": users, "total": 5, "page": page, "page_size": 2, "total_pages": 3})


def test_a_list_is_one_page_and_says_which() -> None:
    with canned(three_pages) as server:
        said = run(server.url, "user", "list", "--page", "2", "--page-size", "2").stdout
    assert len(server.calls) == 1
    assert server.calls[0].query == {"page": ["2"], "page_size": ["2"]}
    assert said.splitlines()[0].split() == ["user", "rpm", "tpm", "slots", "spent", "USD", "of", "USD", "state"]
    assert ["user-2-0", "60", "30000", "-", "0.0000138", "25.00", "active"] in [
        line.split() for line in said.splitlines()
    ]
    assert said.splitlines()[-1] == "Page 2 of 3, 5 users."


def test_all_is_every_page_under_one_head() -> None:
    with canned(three_pages) as server:
        said = run(server.url, "user", "list", "--all").stdout
    assert [call.query["page"] for call in server.calls] == [["1"], ["2"], ["3"]]
    assert server.calls[0].query["page_size"] == ["100"]
    assert (said.count("user-"), said.count("slots"), said.splitlines()[-1]) == (5, 1, "5 users.")
    assert len({len(line) for line in said.splitlines()[:-1]}) == 1  # the columns line up


def test_all_as_json_is_one_document_a_page() -> None:
    with canned(three_pages) as server:
        said = run(server.url, "user", "list", "--all", "--json").stdout
    assert [len(json.loads(line)["users"]) for line in said.splitlines()] == [2, 2, 1]


def test_all_ends_at_an_empty_page_though_more_were_told_of() -> None:
    with canned({"users": [], "total": 9, "page": 1, "page_size": 2, "total_pages": 5}) as server:
        assert run(server.url, "user", "list", "--all").exit_code == 0
    assert len(server.calls) == 1


def test_a_page_before_a_failure_is_shown_and_the_failure_is_the_exit_code() -> None:
    def fail_at_2(call: Call) -> Reply:
        gone = {"error": {"message": "The store is away.", "code": "503"}}
        return three_pages(call) if call.query["page"] == ["1"] else Reply(gone, 503)

    with canned(fail_at_2) as server:
        result = run(server.url, "user", "list", "--all")
    assert (result.exit_code, result.stdout.count("user-1-"), result.stderr) == (6, 2, "Error: The store is away.\n")


def test_a_list_is_filtered_and_sorted_by_the_server() -> None:
    words = [
        "--role", "team", "--user-id", "a", "--user-id", "b", "--user-email", "@x", "--search", "s", "--team", "t",
        "--sort-by", "spend", "--sort-order", "asc",
    ]  # fmt: skip
    with canned(three_pages) as server:
        assert run(server.url, "user", "list", *words).exit_code == 0
    assert server.calls[0].query == {
        "role": ["team"], "user_ids": ["a", "b"], "user_email": ["@x"], "search": ["s"], "team": ["t"],
        "sort_by": ["spend"], "sort_order": ["asc"], "page": ["1"],
    }  # fmt: skip


@pytest.mark.parametrize("content", [{"users": 1}, {"users": [1]}, {}], ids=["no list", "no rows", "nothing"])
def test_a_list_of_another_kind_is_no_llmweir(content: dict[str, Any]) -> None:
    with canned(content) as server:
        result = run(server.url, "user", "list")
    assert (result.exit_code, result.stderr) == (
        6,
        "Error: The server does not answer as llmweir does. Is --server right?\n",
    )


# Against a real gate


@pytest.fixture
def real(url: str, tmp_path: Path) -> Iterator[str]:
    with gate(url, tmp_path) as address:
        yield address


def record_of(address: str, user_id: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {MASTER_KEY}"}
    answer = httpx.get(f"{address}/user/info", params={"user_id": user_id}, headers=headers)
    record: dict[str, Any] = answer.json()["user_info"]
    return record


EVERY_FIELD = [
    "--user-email", "ana@example.org", "--user-alias", "Ana", "--teams", "search", "--no-send-invite-email",
    "--user-role", "internal_user", "--max-budget", "25", "--budget-duration", "1mo", "--models", "gpt-4o", "--models",
    "o1*", "--tpm-limit", "30000", "--rpm-limit", "60", "--max-parallel-requests", "4", "--model-rpm-limit", "a=10",
    "--model-tpm-limit", "o1*=100", "--model-max-budget", "gpt-4o=2.5", "--soft-budget", "20", "--spend", "0.1",
    "--aliases", "fast=gpt-4o", "--allowed-cache-controls", "ttl", "--no-blocked", "--guardrails", "pii",
    "--permissions", '{"a": 1}', "--metadata", '{"b": [2]}', "--config", '{"c": 3}', "--team-id", "ads",
    "--auto-create-key", "--key-alias", "ci", "--duration", "30d", "--password-stdin",
]  # fmt: skip


@on_valkey
def test_every_field_arrives_at_a_real_server(real: str) -> None:
    said = done(real, "user", "new", "ana", *EVERY_FIELD, typed="correct horse\n")
    assert said.splitlines()[-1].startswith("sk-")
    record = record_of(real, "ana")
    expected = {
        "user_email": "ana@example.org", "user_alias": "Ana", "teams": ["search", "ads"], "max_budget": 25,
        "budget_duration": "1mo", "models": ["gpt-4o", "o1*"], "tpm_limit": 30000, "rpm_limit": 60,
        "max_parallel_requests": 4, "model_rpm_limit": {"a": 10}, "model_tpm_limit": {"o1*": 100},
        "model_max_budget": {"gpt-4o": 2.5}, "soft_budget": 20, "spend": 0.1, "aliases": {"fast": "gpt-4o"},
        "allowed_cache_controls": ["ttl"], "blocked": False, "guardrails": ["pii"], "permissions": {"a": 1},
        "metadata": {"b": [2]}, "config": {"c": 3},
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected


@on_valkey
def test_an_update_changes_and_clears_on_a_real_server(real: str) -> None:
    done(real, "user", "new", "ana", "--rpm-limit", "60", "--tpm-limit", "5", "--models", "a", "--no-auto-create-key")
    said = done(real, "user", "update", "ana", "--rpm-limit", "10", "--clear", "tpm_limit", "--clear", "models")
    record = record_of(real, "ana")
    assert (record["rpm_limit"], record["tpm_limit"], record["models"]) == (10, None, [])
    assert "The API key" not in said


@on_valkey
@pytest.mark.parametrize(
    ("words", "key", "code"),
    [
        pytest.param(["new", "ana", "--rpm-limit", "-1"], MASTER_KEY, 1, id="refused"),
        pytest.param(["info", "nobody"], MASTER_KEY, 3, id="not found"),
        pytest.param(["new", "ben"], MASTER_KEY, 4, id="taken"),
        pytest.param(["info", "ben"], "sk-a-wrong-key-0123", 5, id="not allowed"),
    ],
)
def test_a_real_server_refuses_with_the_exit_codes(real: str, words: list[str], key: str, code: int) -> None:
    done(real, "user", "new", "ben")
    result = run(real, "user", *words, key=key)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("Error: ")


@on_valkey
def test_a_whole_life_on_a_real_server(real: str) -> None:
    for name in ("ana", "ben", "cleo"):
        done(real, "user", "new", name, "--rpm-limit", "7")
    assert "Page 1 of 2, 3 users." in done(real, "user", "list", "--page-size", "2")
    assert "3 users." in done(real, "user", "list", "--all", "--page-size", "1")
    assert done(real, "user", "block", "ana", "ben") == "Blocked ana, ben.\n"
    assert [record_of(real, name)["blocked"] for name in ("ana", "ben", "cleo")] == [True, True, False]
    assert done(real, "user", "unblock", "ana") == "Unblocked ana.\n"
    usage = done(real, "user", "usage", "ana").splitlines()
    assert ["rpm", "-", "0", "0", "7", "7"] in [line.split()[:6] for line in usage]
    assert run(real, "user", "delete", "ana", "nobody", "--yes", key=MASTER_KEY).exit_code == 3
    assert done(real, "user", "delete", "ana", "cleo", "--yes") == "Deleted 2 users.\n"
    assert [user["user_id"] for user in json.loads(done(real, "user", "list", "--json"))["users"]] == ["ben"]


@on_valkey
def test_a_user_reads_their_own_record_and_no_other_with_their_own_key(real: str) -> None:
    key = done(real, "user", "new", "ana", "--rpm-limit", "7").splitlines()[-1]
    done(real, "user", "new", "ben")
    assert "rpm_limit              7" in done(real, "user", "info", key=key)
    assert ["rpm", "-", "0", "0", "7", "7"] in [
        row.split()[:6] for row in done(real, "user", "usage", key=key).splitlines()
    ]
    for words in (["info", "ben"], ["list"], ["update", "ana", "--rpm-limit", "8"], ["delete", "ana", "--yes"]):
        assert run(real, "user", *words, key=key).exit_code == 5


@on_valkey
def test_processes_make_a_user_and_read_it_as_json(real: str) -> None:
    said = []
    for words in (["new", "ana", "--max-budget", "0.1"], ["info", "ana"]):
        master = {"LLMWEIR_MASTER_KEY": MASTER_KEY}
        with process(real, "user", *words, "--json", environment=master) as command:
            out, complaints = command.communicate(timeout=PATIENCE_S)
        assert (command.returncode, complaints) == (0, "")
        said.append(json.loads(out))
    assert said[0]["key"].startswith("sk-")
    assert said[1]["user_info"]["max_budget"] == 0.1
    assert said[0]["key"] not in json.dumps(said[1])


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        pytest.param(0, "0s", id="nothing"),
        pytest.param(1, "1s", id="begun seconds count"),
        pytest.param(60_000, "1m", id="whole units stand alone"),
        pytest.param(61_500, "1m 2s", id="two units"),
        pytest.param(2_591_950_000, "29d 23h", id="the two largest units"),
    ],
)
def test_a_time_is_told_by_its_two_largest_units(ms: int, text: str) -> None:
    assert tables._span(ms) == text
