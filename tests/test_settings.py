"""The settings: where they come from, what is refused, what never shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmweir.errors import InvalidValueError
from llmweir.settings import Paths, Settings, describe_settings


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting in the environment, no config file in the working directory."""
    monkeypatch.chdir(tmp_path)
    for info in describe_settings():
        monkeypatch.delenv(info.env, raising=False)
    monkeypatch.delenv("LLMWEIR_CONFIG", raising=False)


def test_a_keyword_beats_the_environment_and_that_beats_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("llmweir.toml").write_text('port = 1001\nworkers = 2\nhost = "::1"\n')
    monkeypatch.setenv("LLMWEIR_PORT", "1002")
    monkeypatch.setenv("LLMWEIR_WORKERS", "3")
    settings = Settings(port=1003)
    assert (settings.port, settings.workers, settings.host, settings.lease_ttl_s) == (1003, 3, "::1", 30)


def test_the_config_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("llmweir.toml").write_text("port = 1001\n")
    (tmp_path / "other.toml").write_text("port = 1002\n")
    monkeypatch.setenv("LLMWEIR_CONFIG", str(tmp_path / "other.toml"))
    assert Settings().port == 1002


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMWEIR_MASTER_KEY", "")
    assert Settings().master_key is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("GET /a*, /b", ("GET /a*", "/b"), id="comma-separated"),
        pytest.param('["GET /a*", "/b,c"]', ("GET /a*", "/b,c"), id="json"),
        pytest.param("/a", ("/a",), id="one"),
        pytest.param("[]", (), id="empty json"),
    ],
)
def test_a_list_in_the_environment_is_json_or_comma_separated(
    text: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMWEIR_FREE_PATHS", text)
    assert Settings().free_paths == expected


def test_a_dict_in_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMWEIR_DEFAULT_USER", '{"rpm_limit": 5, "models": ["gpt-4o"]}')
    assert Settings().default_user == {"rpm_limit": 5, "models": ["gpt-4o"]}


def test_a_dict_and_a_list_may_be_keywords_too() -> None:
    settings = Settings(default_user={"rpm_limit": 5}, open_paths=["/health"])
    assert (settings.default_user, settings.open_paths) == ({"rpm_limit": 5}, ("/health",))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param("upstream", "ftp://host", "http:// or https:// URL", id="upstream of another scheme"),
        pytest.param("upstream", "localhost:4000", "http:// or https:// URL", id="upstream without a scheme"),
        pytest.param("upstream", "http://u:pw@host", "no user or password", id="upstream with a password"),
        pytest.param("upstream", "http://host/?q=1", "no query", id="upstream with a query"),
        pytest.param("redis_url", "http://host", "one of the schemes redis, rediss", id="redis of another scheme"),
        pytest.param("redis_url", "redis://", "a host", id="redis without a host"),
        pytest.param("alert_webhook_url", "slack", "http:// or https:// URL", id="webhook not a url"),
        pytest.param("smtp_url", "http://host", "such as smtp://", id="mail server of another scheme"),
        pytest.param("smtp_url", "smtp://host", "?from=", id="mail server without a sender"),
        pytest.param("smtp_url", "smtp://u@host?from=a@b.c", "or neither", id="mail server with half a login"),
        pytest.param("smtp_url", "smtp://host?from=a@b.c", "smtp_url needs public_url", id="mails without links"),
        pytest.param("public_url", "weir.example.com", "http:// or https:// URL", id="public url without a scheme"),
        pytest.param("public_url", "ftp://host", "http:// or https:// URL", id="public url of another scheme"),
        pytest.param("public_url", "https://u:pw@host", "http:// or https:// URL", id="public url with a password"),
        pytest.param("public_url", "https://host/?q", "no more", id="public url with a query"),
        pytest.param("public_url", "https://host:port", "no more", id="public url with an odd port"),
        pytest.param("public_url", "https://h/\r\nx", "no more", id="public url with a line end"),
        pytest.param("master_key", "", "not empty", id="empty master key"),
        pytest.param("master_key", "sk a", "without spaces", id="master key with a space"),
        pytest.param("master_key", "sk-ä", "printable ASCII", id="master key not ascii"),
        pytest.param("admin_prefix", "llmweir", "a path such as /llmweir", id="prefix without a slash"),
        pytest.param("admin_prefix", "/a//b", "a path such as /llmweir", id="prefix with an empty part"),
        pytest.param("open_paths", "health", "should be a path", id="pattern without a slash"),
        pytest.param("open_paths", "/a*b", "only at the end", id="star in the middle"),
        pytest.param("free_paths", "[1", "should be JSON", id="list not json"),
        pytest.param("default_user", "{", "should be JSON", id="dict not json"),
        pytest.param("key_header", "x key", "name of a header", id="header with a space"),
        pytest.param("budget_exceeded_status", 400, "402, 403, 422 or 429", id="another status"),
        pytest.param("port", 65_536, "65535", id="port too large"),
        pytest.param("lease_ttl_s", 1, "greater than or equal to 2", id="lease too short"),
        pytest.param("lease_renew_s", 0, "greater than or equal to 1", id="renewal too often"),
        pytest.param("lease_renew_s", 30, "less than lease_ttl_s", id="renewal after expiry"),
        pytest.param("body_timeout_s", float("nan"), "finite", id="not a number"),
        pytest.param("unpriced_models", "maybe", "'refuse' or 'free'", id="no such choice"),
    ],
)
def test_a_setting_that_is_not_valid_is_refused_by_name(name: str, value: object, message: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Settings(**{name: value})
    assert name in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("status", [402, 403, 422, 429])
def test_the_status_of_a_spent_budget_may_come_from_the_environment(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMWEIR_BUDGET_EXCEEDED_STATUS", str(status))
    assert Settings().budget_exceeded_status == status


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "rediss://:pw@host:6380/1",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_every_documented_redis_url_is_taken_as_it_is(url: str) -> None:
    redis_url = Settings(redis_url=url).redis_url
    assert redis_url is not None
    assert redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        pytest.param("upstream", "https://host/base/", "https://host/base", id="upstream"),
        pytest.param("admin_prefix", "/llm/", "/llm", id="prefix"),
        pytest.param("admin_prefix", "/", "", id="prefix that is none"),
        pytest.param("key_header", "X-My-Key", "x-my-key", id="header"),
        pytest.param("data_dir", "/var/lib/x", Path("/var/lib/x"), id="folder"),
        pytest.param("public_url", "https://weir.example.com/", "https://weir.example.com", id="public url"),
        pytest.param("public_url", "http://[::1]:8787/a/b/", "http://[::1]:8787/a/b", id="public url with a path"),
    ],
)
def test_a_value_is_kept_in_one_form(name: str, value: object, kept: object) -> None:
    assert getattr(Settings(**{name: value}), name) == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param("prot", "prot is not a setting; did you mean port?", id="typo"),
        pytest.param("redis-url", "did you mean redis_url?", id="dash"),
        pytest.param("zzz", "zzz is not a setting.", id="nothing near"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(given: str, message: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Settings(**{given: 1})
    assert message in str(caught.value)


def test_an_unknown_name_in_the_file_is_refused_with_the_file_named() -> None:
    Path("llmweir.toml").write_text("prot = 1\n")
    with pytest.raises(InvalidValueError, match=r"prot is not a setting \(in llmweir.toml\); did you mean port\?"):
        Settings()


def test_an_error_names_where_the_value_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("llmweir.toml").write_text('workers = "many"\n')
    monkeypatch.setenv("LLMWEIR_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(InvalidValueError) as caught:
        Settings(lease_ttl_s="x")
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "LLMWEIR_PORT",
        "workers (in llmweir.toml)",
        "lease_ttl_s",
    ]


def test_a_config_file_that_was_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMWEIR_CONFIG", "gone.toml")
    with pytest.raises(InvalidValueError, match=r"config file gone\.toml does not exist"):
        Settings()


@pytest.mark.parametrize("content", [b"port = = 1", b"\xff"], ids=["syntax", "encoding"])
def test_a_config_file_that_cannot_be_read_is_an_error(content: bytes) -> None:
    Path("llmweir.toml").write_bytes(content)
    with pytest.raises(InvalidValueError, match=r"config file llmweir\.toml cannot be read"):
        Settings()


def test_no_secret_ever_shows() -> None:
    settings = Settings(
        master_key="sk-hush",
        upstream_api_key="hush",
        redis_url="redis://:hush@host",
        alert_webhook_url="https://host/hush",
        smtp_url="smtp://hush:hush@host?from=weir@example.com",
        public_url="https://weir.example.com",
    )
    assert "hush" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_an_error_never_shows_the_value() -> None:
    with pytest.raises(InvalidValueError) as caught:
        Settings(redis_url="http://:hush@host", master_key="hush hush", smtp_url="smtp://u:hush#@h?from=a@b")
    assert "hush" not in f"{caught.value} {caught.value.__cause__}"


def test_the_defaults_of_paths_follow_the_place() -> None:
    settings = Settings()
    assert settings.for_front() == Paths(admin_prefix="", open_paths=(), unknown_paths="refuse")
    assert settings.for_around() == Paths(admin_prefix="/llmweir", open_paths=("/health*",), unknown_paths="count")


def test_paths_that_are_set_hold_in_either_place() -> None:
    settings = Settings(admin_prefix="/gate", open_paths=[], unknown_paths="count")
    expected = Paths(admin_prefix="/gate", open_paths=(), unknown_paths="count")
    assert settings.for_front() == settings.for_around() == expected


def test_every_setting_describes_itself() -> None:
    infos = {info.name: info for info in describe_settings()}
    assert list(infos) == list(Settings.model_fields)
    assert all(info.description.endswith(".") for info in infos.values())
    port, data_dir, free_paths = infos["port"], infos["data_dir"], infos["free_paths"]
    assert (port.env, port.flag, port.default) == ("LLMWEIR_PORT", "--port", 8787)
    assert (data_dir.default, free_paths.default) == ("./llmweir-data", ["GET /v1/models*"])
