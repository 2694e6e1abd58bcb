"""`llmweir import litellm` against stand-ins for both servers, and against a real gate."""

from __future__ import annotations

import csv
import hashlib
import stat
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from tests.cli.canned import KEY, Canned, Reply, canned, gate
from tests.cli.litellm_stand_in import OTHER, PROXY_KEY, Proxy, Weir, bare_user, key_row, user_row
from tests.harness import MASTER_KEY, empty

from llmweir.cli import main


class Scene:
    """A proxy and an llmweir, and the command between them."""

    def __init__(self, folder: Path, stack: ExitStack, proxy: Proxy, weir: Weir) -> None:
        self.proxy, self.weir = proxy, weir
        self.source: Canned = stack.enter_context(canned(proxy))
        self.target: Canned = stack.enter_context(canned(weir))
        self.file = folder / "keys.csv"

    def run(self, *words: str, typed: str = "", **environment: str | None) -> Result:
        command = ["import", "litellm", "--server", self.source.url, *words]
        given = {
            "LITELLM_MASTER_KEY": PROXY_KEY, "LLMWEIR_SERVER": self.target.url, "LLMWEIR_MASTER_KEY": KEY,
            "COLUMNS": "200", **environment,
        }  # fmt: skip
        result = CliRunner().invoke(main, command, env=given, input=typed)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def carry(self, *words: str) -> Result:
        return self.run("--yes", "--keys-out", str(self.file), *words)

    def rows(self) -> list[dict[str, str]]:
        with self.file.open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def written(self) -> list[str]:
        """The paths of llmweir that were written to."""
        return [call.path for call in self.target.calls if call.method == "POST"]


SceneOf = Callable[..., Scene]


@pytest.fixture
def scene_of(tmp_path: Path) -> Any:
    with ExitStack() as stack:

        def scene_of(users: list[Any] | None = None, keys: list[Any] | None = None, **given: Any) -> Scene:
            weir = Weir(**{name: given.pop(name) for name in tuple(given) if name in Weir.__annotations__})
            return Scene(tmp_path, stack, Proxy(users or [], keys or [], **given), weir)

        yield scene_of


def test_a_user_comes_over_with_every_field_that_both_sides_have(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()])
    assert scene.carry().exit_code == 0
    assert scene.weir.users["ana"] == {
        "user_id": "ana",
        "user_alias": "Ana",
        "user_email": "ana@example.org",
        "user_role": "internal_user",
        "teams": ["search"],
        "models": ["gpt-4o"],
        "max_budget": 25.0,
        "budget_duration": "30d",
        "spend": 1.234567891,
        "rpm_limit": 60,
        "tpm_limit": 30000,
        "max_parallel_requests": 3,
        "model_rpm_limit": {"gpt-4o": 10},
        "model_max_budget": {"gpt-4o": {"max_budget": 5.0, "budget_duration": "1d"}},
        "allowed_cache_controls": ["no-cache"],
        "metadata": {"desk": 4},
        "auto_create_key": False,
    }


def test_a_key_comes_over_as_a_new_one_that_only_the_file_shows(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row()])
    result = scene.carry()
    assert result.exit_code == 0
    [row] = scene.rows()
    new_key = row.pop("new_key")
    assert row == {
        "user_id": "ana", "key_alias": "ci", "key_name": "sk-...abcd", "old_token": "0f" * 32, "state": "minted",
    }  # fmt: skip
    assert scene.weir.keys[hashlib.sha256(new_key.encode()).hexdigest()] == {
        "user_id": "ana", "key_alias": "ci", "models": ["gpt-4o"], "max_budget": 5.0, "rpm_limit": 5, "spend": 0.25,
        "key": new_key,
    }  # fmt: skip
    assert new_key not in result.output
    assert PROXY_KEY not in result.output
    assert KEY not in result.output


def test_only_the_owner_can_read_the_file_of_keys(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row()])
    scene.file.write_text("user_id,key_alias,key_name,old_token,new_key,state\n")
    scene.file.chmod(0o644)
    scene.carry()
    assert stat.S_IMODE(scene.file.stat().st_mode) == 0o600
    assert list(scene.file.parent.iterdir()) == [scene.file]


def test_a_dry_run_writes_nothing(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row(budget_id="b-1")])
    result = scene.run("--dry-run", "--keys-out", str(scene.file))
    assert result.exit_code == 0
    assert "1 user would be made." in result.output
    assert "1 key would be replaced by a new one" in result.output
    assert "budget_id" in result.output
    assert scene.written == []
    assert not scene.file.exists()


def test_a_dry_run_needs_no_llmweir(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()])
    result = scene.run("--dry-run", LLMWEIR_MASTER_KEY=None)
    assert result.exit_code == 0
    assert "was not asked who is there already" in result.output
    assert scene.target.calls == []


LOST: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("a shared budget", {}, {"budget_id": "b-1"}, "budget_id"),
    ("limits of a team", {}, {"team_id": "t", "team_max_budget": 5.0}, "team_*"),
    ("limits per model of a key", {}, {"metadata": {"model_rpm_limit": {"m": 1}}}, "metadata.model_rpm_limit"),
    ("budgets per model of a key", {}, {"model_max_budget": {"m": 1}}, "model_max_budget"),
    ("guardrails' siblings", {"metadata": {"tags": ["a"]}}, {}, "metadata.tags"),
    ("a field nobody knows", {"brand_new": 1}, {}, "brand_new"),
    ("a role of its own", {"user_role": "org_admin"}, {}, "user_role"),
    ("a role that may less here", {"user_role": "internal_user_viewer"}, {}, "user_role"),
    ("SSO", {"sso_user_id": "okta|1"}, {}, "sso_user_id"),
    ("what is spent per model", {"model_spend": {"m": 1.0}}, {}, "model_spend"),
    ("a period nobody can read", {"budget_duration": "fortnight"}, {}, "budget_duration"),
    ("an address that is none", {"user_email": "nobody"}, {}, "user_email"),
    ("more money than there is", {"max_budget": 1e9}, {}, "max_budget"),
    ("a limit below nothing", {"rpm_limit": -1}, {}, "rpm_limit"),
    ("all models of a team", {}, {"team_id": "t", "models": ["all-team-models"]}, "models"),
]


@pytest.mark.parametrize(("user", "key", "field"), [row[1:] for row in LOST], ids=[row[0] for row in LOST])
def test_what_cannot_be_carried_over_is_named_with_a_reason(
    scene_of: SceneOf, user: dict[str, Any], key: dict[str, Any], field: str
) -> None:
    scene = scene_of([user_row(**user)], [key_row(**key)])
    shown = scene.run("--dry-run").output
    assert "Changed or lost on the way" in shown
    assert f" {field} " in shown
    done = scene.carry()
    assert done.exit_code == 0, done.output
    assert "ana" in scene.weir.users
    assert len(scene.weir.keys) == 1


def test_a_row_without_losses_shows_none(scene_of: SceneOf) -> None:
    shown = scene_of([user_row()], [key_row()]).run("--dry-run").output
    assert "Changed or lost" not in shown
    assert "Left out" not in shown


BODIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("words of durations", {"budget_duration": "monthly"}, {"budget_duration": "30d"}),
    ("all models", {"models": ["all-proxy-models"]}, {"models": ["*"]}),
    ("no models", {"models": ["no-default-models"]}, {"models": ["no-default-models"]}),
    ("a list of nothing that can be allowed", {"models": ["a*b"]}, {"models": ["no-default-models"]}),
    ("a list with one that cannot be", {"models": ["a*b", "c"]}, {"models": ["c"]}),
    ("teams as objects", {"teams": [{"team_id": "t"}, "u"]}, {"teams": ["t", "u"]}),
    ("rates in a model's budget", {"model_max_budget": {"m": {"rpm_limit": 3}}, "metadata": {}},
     {"model_rpm_limit": {"m": 3}, "model_max_budget": {}}),
    ("budgets that are none", {"model_max_budget": {"m": None, "n": 2.0}}, {"model_max_budget": {"n": 2.0}}),
    ("guardrails in the metadata", {"metadata": {"guardrails": ["pii"]}}, {"guardrails": ["pii"], "metadata": {}}),
    ("a budget too large", {"max_budget": 1e9}, {"max_budget": 9_000_000}),
    ("a budget of nothing", {"max_budget": 0.0}, {"max_budget": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_values_are_brought_into_the_spelling_of_llmweir(
    scene_of: SceneOf, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    scene = scene_of([user_row(**changes)])
    assert scene.carry().exit_code == 0
    made = scene.weir.users["ana"]
    assert {name: made[name] for name in expected} == expected


def test_a_key_takes_the_limits_of_its_attached_budget_where_it_has_none(scene_of: SceneOf) -> None:
    table = {"max_budget": 2.0, "rpm_limit": 9, "budget_duration": "1d"}
    scene = scene_of([user_row()], [key_row(max_budget=None, litellm_budget_table=table, budget_id="b")])
    scene.carry()
    [key] = scene.weir.keys.values()
    assert (key["max_budget"], key["rpm_limit"], key["budget_duration"]) == (2.0, 5, "1d")


def test_a_key_keeps_what_is_left_of_its_life(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row(expires="2126-01-01T00:00:00Z")])
    assert scene.carry().exit_code == 0
    [key] = scene.weir.keys.values()
    assert 0 < int(key["duration"].removesuffix("s")) < 100 * 366 * 86_400


@pytest.mark.parametrize("expires", ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00", "soon"])
def test_a_key_that_has_expired_is_left_out(scene_of: SceneOf, expires: str) -> None:
    scene = scene_of([user_row()], [key_row(expires=expires)])
    result = scene.carry()
    assert result.exit_code == 0
    assert "Left out" in result.output
    assert scene.weir.keys == {}
    assert scene.rows() == []


def test_a_blocked_key_comes_over_blocked(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row(blocked=True)])
    scene.carry()
    [key] = scene.weir.keys.values()
    assert key["blocked"] is True


def test_keys_of_the_proxys_own_dashboard_stay_behind(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row(team_id="litellm-dashboard")])
    scene.carry()
    assert scene.weir.keys == {}


def test_a_key_without_a_user_gets_one_of_its_own(scene_of: SceneOf) -> None:
    scene = scene_of([], [key_row(user_id=None)])
    result = scene.carry()
    [key] = scene.weir.keys.values()
    assert key["user_id"] == f"litellm-key-{'0f' * 8}"
    assert scene.weir.users[key["user_id"]]["user_alias"] == "ci"
    assert "A key without a user" in result.output


def test_a_key_of_a_user_that_is_not_listed_makes_that_user(scene_of: SceneOf) -> None:
    scene = scene_of([], [key_row(user_id="default_user_id")])
    scene.carry()
    assert scene.weir.users == {"default_user_id": {"user_id": "default_user_id", "auto_create_key": False}}


def test_a_key_that_the_proxy_lists_in_clear_is_kept(scene_of: SceneOf) -> None:
    clear = "sk-in-clear-0123456789"
    scene = scene_of([user_row()], [key_row(token=clear)])
    result = scene.carry()
    assert "1 key to be kept" in result.output
    assert list(scene.weir.keys) == [hashlib.sha256(clear.encode()).hexdigest()]
    assert scene.rows() == []
    again = scene.carry()
    assert "Keys: 0 made, 1 there already." in again.output


def test_a_proxy_that_lists_hashes_alone_is_asked_for_each_key(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row(), key_row(token=OTHER, key_alias="cd")], lists_hashes=True)
    assert scene.carry().exit_code == 0
    assert sorted(key["key_alias"] for key in scene.weir.keys.values()) == ["cd", "ci"]


def test_every_page_is_read(scene_of: SceneOf) -> None:
    users = [bare_user(f"u{number:03}") for number in range(201)]
    keys = [key_row(token=f"{number:064x}", key_alias=None, user_id=f"u{number:03}") for number in range(201)]
    scene = scene_of(users, keys)
    assert scene.carry().exit_code == 0
    assert len(scene.weir.users) == len(scene.weir.keys) == 201
    again = scene.carry()
    assert "201 keys of these made before" in again.output
    assert "Users: 0 made, 0 updated, 201 left as they are." in again.output
    assert "Keys: 0 made, 201 there already." in again.output


def test_two_users_with_one_address_keep_it_once(scene_of: SceneOf) -> None:
    scene = scene_of([user_row(), user_row(user_id="bob", user_email="ANA@example.org")])
    result = scene.carry()
    assert result.exit_code == 0
    assert [row.get("user_email") for row in scene.weir.users.values()] == ["ana@example.org", None]
    assert "Another user has this address already." in result.output


def test_two_keys_with_one_alias_keep_it_once(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row(), key_row(token=OTHER)])
    assert scene.carry().exit_code == 0
    assert sorted(str(key.get("key_alias")) for key in scene.weir.keys.values()) == ["None", "ci"]


def test_users_that_are_there_are_left_as_they_are(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()])
    scene.weir.users["ana"] = {"user_id": "ana", "rpm_limit": 1}
    scene.carry()
    assert scene.weir.users["ana"]["rpm_limit"] == 1
    assert "/user/update" not in scene.written


def test_users_that_are_there_are_updated_where_that_is_wanted(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()])
    scene.weir.users["ana"] = {"user_id": "ana", "rpm_limit": 1}
    result = scene.carry("--update")
    assert scene.weir.users["ana"]["rpm_limit"] == 60
    assert "auto_create_key" not in scene.weir.users["ana"]
    assert "Users: 0 made, 1 updated" in result.output


def test_what_is_refused_is_told_at_the_end_and_does_not_hold_up_the_rest(scene_of: SceneOf) -> None:
    users = [bare_user("ana"), bare_user("bob")]
    keys = [key_row(), key_row(token=OTHER, user_id="bob", key_alias="cd")]
    scene = scene_of(users, keys, refuses=frozenset({"ana"}))
    result = scene.carry()
    assert result.exit_code == 1
    assert "Refused: user ana: It is taken." in result.output
    assert "Refused: key ci: Its user could not be made." in result.output
    assert list(scene.weir.users) == ["bob"]
    assert [row["key_alias"] for row in scene.rows()] == ["cd"]


def test_a_key_that_is_refused_is_not_in_the_file(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row()], refuses=frozenset({"ci"}))
    assert scene.carry().exit_code == 1
    assert scene.rows() == []


@pytest.mark.parametrize("loses_answers", [False, True], ids=["before it minted", "after it minted"])
def test_an_import_that_broke_off_goes_on_and_mints_no_key_twice(scene_of: SceneOf, loses_answers: bool) -> None:
    keys = [key_row(token=f"{number:064x}", key_alias=f"k{number}") for number in range(5)]
    scene = scene_of([user_row()], keys, dies_after=2, loses_answers=loses_answers)
    broken = scene.carry()
    assert broken.exit_code == 6
    assert "llmweir: " in broken.output
    states = [row["state"] for row in scene.rows()]
    assert states == ["minted", "minted", "pending", "pending", "pending"]
    secrets = [row["new_key"] for row in scene.rows()]
    scene.weir.dies_after = None
    assert scene.carry().exit_code == 0
    assert [row["state"] for row in scene.rows()] == ["minted"] * 5
    assert [row["new_key"] for row in scene.rows()] == secrets
    assert sorted(scene.weir.keys) == sorted(hashlib.sha256(secret.encode()).hexdigest() for secret in secrets)


def test_users_alone_can_be_brought(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row()])
    assert scene.run("--yes", "--no-keys").exit_code == 0
    assert scene.written == ["/user/new"]
    assert all(call.path == "/user/list" for call in scene.source.calls)


def test_it_has_to_be_said_where_keys_go(scene_of: SceneOf) -> None:
    result = scene_of([user_row()]).run("--yes")
    assert result.exit_code == 2
    assert "--keys-out" in result.output


def test_without_a_terminal_nothing_is_written_unasked(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()])
    result = scene.run("--keys-out", str(scene.file))
    assert result.exit_code == 2
    assert "--yes" in result.output
    assert scene.written == []


def test_a_file_that_is_none_of_ours_is_left_alone(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row()])
    scene.file.write_text("precious\n")
    result = scene.carry()
    assert result.exit_code == 1
    assert "no file of keys" in result.output
    assert scene.file.read_text() == "precious\n"
    assert scene.written == []


def test_a_folder_that_is_not_there_is_a_sentence(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row()])
    result = scene.run("--yes", "--keys-out", str(scene.file.parent / "no" / "keys.csv"))
    assert result.exit_code == 1
    assert "cannot be written" in result.output
    assert scene.written == []


@pytest.mark.parametrize("missing", ["LITELLM_MASTER_KEY", "LLMWEIR_MASTER_KEY"])
def test_a_key_that_is_missing_is_asked_for_by_name(scene_of: SceneOf, missing: str) -> None:
    scene = scene_of([user_row()])
    given: dict[str, Any] = {missing: None}
    result = scene.run("--yes", "--no-keys", **given)
    assert result.exit_code == 2
    assert missing in result.output


@pytest.mark.parametrize(
    ("variable", "says"), [("LITELLM_MASTER_KEY", "LiteLLM: "), ("LLMWEIR_MASTER_KEY", "llmweir: ")]
)
def test_a_key_that_is_not_known_ends_it_and_says_where(scene_of: SceneOf, variable: str, says: str) -> None:
    scene = scene_of([user_row()])
    result = scene.run("--yes", "--no-keys", **{variable: "sk-of-nobody-at-all"})
    assert result.exit_code == 5
    assert says in result.output
    assert scene.weir.users == {}


def test_a_server_that_is_no_proxy_is_named_with_its_option(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()])
    scene.source.reply = lambda _: Reply(b"<html>", 404)
    result = scene.run("--dry-run")
    assert result.exit_code == 6
    assert "does not answer as LiteLLM does" in result.output
    scene.source.reply = scene.proxy
    scene.target.reply = lambda _: Reply(b"<html>", 404)
    result = scene.run("--dry-run")
    assert result.exit_code == 6
    assert "Is --to right?" in result.output


def test_names_that_a_terminal_would_obey_are_spelt_out(scene_of: SceneOf) -> None:
    scene = scene_of([user_row(user_id="a[red]\x1b[2J", brand_new=1)])
    shown = scene.run("--dry-run").output
    assert "\x1b[2J" not in shown
    assert "a[red]\\x1b[2J" in shown


def test_a_user_whose_id_cannot_be_one_is_left_out(scene_of: SceneOf) -> None:
    scene = scene_of([user_row(user_id="a\nb"), bare_user("bob")])
    result = scene.carry()
    assert result.exit_code == 0
    assert "Left out" in result.output
    assert list(scene.weir.users) == ["bob"]


ODD_ANSWERS: list[tuple[str, str, Any]] = [
    ("no list of users", "/user/list", {"users": "ana"}),
    ("a page that is a list", "/user/list", []),
    ("no list of keys", "/key/list", {"keys": None}),
    ("a key that is a number", "/key/list", {"keys": [7], "total_pages": 1}),
    ("a key without a row", "/key/info", {"key": "x"}),
]


@pytest.mark.parametrize(("path", "content"), [row[1:] for row in ODD_ANSWERS], ids=[row[0] for row in ODD_ANSWERS])
def test_a_proxy_that_answers_otherwise_ends_it(scene_of: SceneOf, path: str, content: Any) -> None:
    scene = scene_of([user_row()], [key_row()], lists_hashes=True)
    scene.source.reply = lambda call: Reply(content) if call.path == path else scene.proxy(call)
    result = scene.carry()
    assert result.exit_code == 6
    assert "does not answer as LiteLLM does" in result.output or "is no key" in result.output
    assert scene.written == []


def test_an_llmweir_that_answers_otherwise_ends_it(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()])
    scene.target.reply = lambda _: Reply({"users": None})
    result = scene.carry()
    assert result.exit_code == 6
    assert "/user/list does not answer as llmweir does" in result.output


def test_at_a_terminal_keys_are_asked_for_without_being_shown_and_so_is_whether_to_go_on(
    scene_of: SceneOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of([user_row()])
    monkeypatch.setattr(sys.modules["llmweir.cli.importing"], "is_at_terminal", lambda: True)
    given: dict[str, Any] = {"LITELLM_MASTER_KEY": None, "LLMWEIR_MASTER_KEY": None}
    refused = scene.run("--no-keys", typed=f"{PROXY_KEY}\n{KEY}\nn\n", **given)
    assert refused.exit_code == 130
    assert scene.written == []
    result = scene.run("--no-keys", typed=f"{PROXY_KEY}\n{KEY}\ny\n", **given)
    assert result.exit_code == 0
    assert scene.written == ["/user/new"]
    assert KEY not in result.output
    assert PROXY_KEY not in result.output


def test_a_key_that_fits_no_header_is_refused_unsent(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()])
    result = scene.run("--dry-run", LITELLM_MASTER_KEY="sk-\u00e9")
    assert result.exit_code == 2
    assert scene.source.calls == []


def test_a_file_that_is_no_text_is_a_sentence(scene_of: SceneOf) -> None:
    scene = scene_of([user_row()], [key_row()])
    scene.file.write_bytes(b"\xff\xfe\x00")
    result = scene.carry()
    assert result.exit_code == 1
    assert "cannot be read as a file of keys" in result.output


def test_a_file_that_cannot_be_replaced_is_left_whole(scene_of: SceneOf, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of([user_row()], [key_row()])
    assert scene.carry().exit_code == 0
    before = scene.file.read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = scene.carry()
    assert result.exit_code == 1
    assert "No space left on device" in result.output
    assert scene.file.read_text() == before
    assert list(scene.file.parent.iterdir()) == [scene.file]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_max_budget": {"m": -1, "n": 2.0}}, "model_max_budget"),
        ({"guardrails": ["a", 7]}, "guardrails"),
        ({"model_rpm_limit": {"a*b": 1, "c": 2}}, "model_rpm_limit"),
        ({"metadata": "text"}, "metadata"),
        ({"models": "gpt-4o"}, "models"),
        ({"models": [7]}, "models"),
        ({"spend": True}, "spend"),
    ],
    ids=["a budget below nothing", "an entry of a list", "an entry of a dict", "a dict that is text",
         "a list that is text", "a list of a number", "an amount that is none"],
)  # fmt: skip
def test_an_entry_that_is_refused_is_dropped_alone(scene_of: SceneOf, changes: dict[str, Any], field: str) -> None:
    scene = scene_of([user_row(**changes)])
    result = scene.carry()
    assert result.exit_code == 0, result.output
    assert f" {field} " in result.output
    made = scene.weir.users["ana"]
    kept = {"model_max_budget": {"n": 2.0}, "guardrails": ["a"], "model_rpm_limit": {"c": 2}}
    assert made.get(field) == (["no-default-models"] if field == "models" else kept.get(field))


def test_a_real_llmweir_knows_the_users_and_the_new_keys_after(
    scene_of: SceneOf, url_of: Callable[[str], str], tmp_path: Path
) -> None:
    valkey = url_of("valkey")
    empty(valkey)
    keys = [key_row(), key_row(token=OTHER, key_alias=None, user_id=None, blocked=True)]
    scene = scene_of([user_row(), bare_user("bob")], keys)
    with gate(valkey, tmp_path) as url:
        given = {"LLMWEIR_SERVER": url, "LLMWEIR_MASTER_KEY": MASTER_KEY}
        words = ["--yes", "--keys-out", str(scene.file)]
        first = scene.run(*words, **given)
        assert first.exit_code == 0, first.output
        assert "Users: 3 made" in first.output
        assert "Keys: 2 made" in first.output
        again = scene.run(*words, **given)
        assert "Users: 0 made, 0 updated, 3 left as they are." in again.output
        assert "Keys: 0 made, 2 there already." in again.output
        assert scene.run(*words, "--update", **given).exit_code == 0
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {MASTER_KEY}"}) as admin:
            ana = admin.get("/user/info", params={"user_id": "ana"}).json()
            assert ana["user_info"]["spend"] == 1.234567891
            assert ana["user_info"]["model_rpm_limit"] == {"gpt-4o": 10}
            [listed] = ana["keys"]
            assert (listed["key_alias"], listed["rpm_limit"], listed["spend"]) == ("ci", 5, 0.25)
            new_key = next(row["new_key"] for row in scene.rows() if row["user_id"] == "ana")
            own = admin.get("/user/info", headers={"authorization": f"Bearer {new_key}"})
            assert own.json()["user_id"] == "ana"
