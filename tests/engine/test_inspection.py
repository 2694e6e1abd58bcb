"""What a Redis says of itself, judged; and what it does, tried."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.backends import on_real_servers, on_valkey

from llmweir.engine import scripts
from llmweir.engine.inspection import inspect, warnings_of
from llmweir.engine.inspection_rights import COMMANDS, SCRIPT_COMMANDS, script_names, try_rights
from llmweir.engine.inspection_rules import (
    Facts,
    Remark,
    Verdict,
    clock_of,
    eviction_of,
    persistence_of,
    remarks_of,
    role_of,
    version_of,
)
from llmweir.engine.link import Link
from llmweir.engine.wire import ReplyError

ENGINE = Path(scripts.__file__).parent

VERSIONS: dict[str, tuple[Mapping[str, str] | None, Verdict, str]] = {
    "Valkey": ({"redis_version": "7.2.4", "valkey_version": "8.1.1"}, "ok", "Valkey 8.1.1."),
    "the oldest Redis": ({"redis_version": "6.2.0"}, "ok", "Redis 6.2.0."),
    "a Redis of two digits": ({"redis_version": "10.0.1"}, "ok", "Redis 10.0.1."),
    "too old": ({"redis_version": "6.0.16"}, "error", "Redis 6.0.16: 6.2 or newer is needed, or Valkey."),
    "nameless": ({"role": "master"}, "unknown", "It does not say which version it is."),
    "hidden": (None, "unknown", "Its version: not allowed to look (INFO)."),
}

AOF = {"aof_enabled": "1"}
RDB = {"aof_enabled": "0"}
PERSISTENCE: dict[str, tuple[Mapping[str, str] | None, Mapping[str, str] | None, Verdict, str]] = {
    "always": (AOF, {"appendfsync": "always"}, "ok", "a crash loses nothing"),
    "everysec": (AOF, {"appendfsync": "everysec"}, "ok", "may lose about a second"),
    "no fsync": (AOF, {"appendfsync": "no"}, "warning", "may lose half a minute"),
    "aof, config hidden": (AOF, None, "ok", "how often it is written through: not allowed to look"),
    "aof on a full disk": (AOF | {"aof_last_write_status": "err"}, {}, "error", "cannot be written"),
    "snapshots": (RDB, {"save": "3600 1"}, "warning", "Snapshots alone (save 3600 1): a crash may lose all since"),
    "snapshots that fail": (
        RDB | {"rdb_last_bgsave_status": "err"}, {"save": "60 1"}, "warning", "The last snapshot failed.",
    ),
    "nothing": (RDB, {"save": ""}, "warning", "NOTHING IS KEPT"),
    "no aof, config hidden": (RDB, None, "warning", "Snapshots: not allowed to look (CONFIG GET)."),
    "hidden": (None, None, "unknown", "not allowed to look"),
}  # fmt: skip

EVICTION: dict[str, tuple[Mapping[str, str] | None, Verdict, str]] = {
    "noeviction": ({"maxmemory_policy": "noeviction", "maxmemory": "1"}, "ok", "nothing is thrown out"),
    "no limit": ({"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}, "ok", "No maxmemory"),
    "allkeys": ({"maxmemory_policy": "allkeys-lru", "maxmemory": "1"}, "warning", "users, keys, limits and books"),
    "volatile": ({"maxmemory_policy": "volatile-ttl", "maxmemory": "1"}, "warning", "days, windows and memos"),
    "unsaid": ({}, "unknown", "not allowed to look"),
    "hidden": (None, "unknown", "not allowed to look"),
}


@pytest.mark.parametrize("case", VERSIONS)
def test_a_version_is_new_enough_or_not(case: str) -> None:
    info, verdict, text = VERSIONS[case]
    assert version_of(Facts(info=info)) == Remark("version", verdict, text)


@pytest.mark.parametrize("case", PERSISTENCE)
def test_it_is_said_what_a_crash_may_lose(case: str) -> None:
    info, config, verdict, text = PERSISTENCE[case]
    remark = persistence_of(Facts(info=info, config=config))
    assert remark.verdict == verdict
    assert text in remark.text


@pytest.mark.parametrize("case", EVICTION)
def test_it_is_said_whether_memory_that_is_full_throws_out_books(case: str) -> None:
    info, verdict, text = EVICTION[case]
    remark = eviction_of(Facts(info=info))
    assert remark.verdict == verdict
    assert text in remark.text


def test_a_replica_is_an_error() -> None:
    assert role_of(Facts(info={"role": "slave"})).verdict == "error"
    assert role_of(Facts(info={"role": "master", "connected_slaves": "2"})).text == "A master; connected replicas: 2."
    assert role_of(Facts()).verdict == "unknown"


@pytest.mark.parametrize(
    ("skew_ms", "verdict", "text"),
    [
        (1_000, "ok", "agree"),
        (-1_000, "ok", "agree"),
        (1_001, "warning", "1.0 s ahead of"),
        (-90_500, "warning", "90.5 s behind"),
        (None, "unknown", "not allowed to look"),
    ],
)
def test_a_clock_that_is_off_by_more_than_a_second_is_a_warning(
    skew_ms: int | None, verdict: Verdict, text: str
) -> None:
    remark = clock_of(Facts(skew_ms=skew_ms))
    assert remark.verdict == verdict
    assert text in remark.text


def test_nothing_that_may_be_seen_is_five_times_unknown() -> None:
    assert [remark.verdict for remark in remarks_of(Facts())] == ["unknown"] * 5


@on_real_servers
async def test_a_server_without_persistence_is_warned_about_and_nothing_else(link: Link) -> None:
    verdicts = {remark.name: remark.verdict for remark in await inspect(link)}
    assert verdicts == {
        "version": "ok", "role": "ok", "persistence": "warning", "eviction": "ok", "clock": "ok",
    }  # fmt: skip
    assert await warnings_of(link) == [
        "NOTHING IS KEPT: a restart of Redis loses all users, keys, limits and books. Set appendonly yes."
    ]


@on_valkey
async def test_a_wrong_clock_is_seen_from_here(link: Link) -> None:
    told = {remark.name: remark for remark in await inspect(link, clock_ms=lambda: 0)}
    assert told["clock"].verdict == "warning"
    assert "ahead of" in told["clock"].text


@on_valkey
async def test_eviction_is_warned_about_at_the_start(link: Link) -> None:
    await link.call("CONFIG", "SET", "maxmemory", "1gb", "maxmemory-policy", "allkeys-lru")
    try:
        assert any("maxmemory-policy allkeys-lru" in warning for warning in await warnings_of(link))
    finally:
        await link.call("CONFIG", "SET", "maxmemory", 0, "maxmemory-policy", "noeviction")


async def test_a_server_that_is_away_gives_no_warnings_and_no_error(tmp_path: Path) -> None:
    link = Link(f"unix://{tmp_path}/none.sock", timeout_ms=200)
    try:
        assert await warnings_of(link) == []
    finally:
        await link.aclose()


@on_valkey
async def test_warnings_take_one_round_trip(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[list[bytes]] = [[]]
    send = link.send

    def counted(packed: bytes) -> asyncio.Future[object]:
        turns[-1].append(packed)
        if len(turns[-1]) == 1:
            asyncio.get_running_loop().call_soon(turns.append, [])
        return send(packed)  # type: ignore[return-value]  # of any reply

    monkeypatch.setattr(link, "send", counted)
    await warnings_of(link)
    assert [len(turn) for turn in turns if turn] == [4]


@on_real_servers
async def test_all_rights_are_there_and_trying_them_leaves_nothing(link: Link) -> None:
    assert [remark.verdict for remark in await try_rights(link)] == ["ok", "ok", "ok"]
    assert await link.call("EXISTS", "lw:{check}", "lw:{check}:rows", "lw:{check}:writing") == 0


async def limited(link: Link, url: str, *rules: str) -> Link:
    await link.call("ACL", "SETUSER", "app", "reset", "on", ">secret", *rules)
    scheme, _, where = url.partition("://")
    return Link(f"{scheme}://app:secret@{where}", timeout_ms=10_000)


@on_real_servers
async def test_a_user_with_just_the_rights_it_takes_is_well_off(link: Link, url: str) -> None:
    block = re.search(r"```\n(~lw:.*?)```", (ENGINE.parents[2] / "docs" / "redis.md").read_text(), re.DOTALL)
    assert block is not None
    app = await limited(link, url, *block[1].split())
    try:
        assert [remark.verdict for remark in await try_rights(app)] == ["ok", "ok", "ok"]
        verdicts = {remark.name: remark.verdict for remark in await inspect(app)}
        assert verdicts == {
            "version": "unknown", "role": "unknown", "persistence": "unknown", "eviction": "unknown", "clock": "ok",
        }  # fmt: skip
        assert await warnings_of(app) == []
    finally:
        await app.aclose()
        await link.call("ACL", "DELUSER", "app")


RIGHTS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "a command of scripts": (("~*", "+@all", "-hincrby"), {"rights": "may not run HINCRBY on keys"}),
    "a command by itself": (("~*", "+@all", "-zcard"), {"rights": "may not run ZCARD on keys"}),
    "other keys": (("~app:*", "+@all"), {"rights": "cannot be run on keys", "struct": "not allowed to look"}),
    "no scripts": (
        ("~*", "+@all", "-@scripting"),
        {"scripts": "cannot be loaded", "struct": "not allowed to look", "rights": "cannot be run"},
    ),
}  # fmt: skip


@on_real_servers
@pytest.mark.parametrize("case", RIGHTS)
async def test_a_right_that_is_missing_is_named(link: Link, url: str, case: str) -> None:
    rules, expected = RIGHTS[case]
    app = await limited(link, url, *rules)
    try:
        wrong = {remark.name: remark.text for remark in await try_rights(app) if remark.verdict != "ok"}
    finally:
        await app.aclose()
        await link.call("ACL", "DELUSER", "app")
    assert set(wrong) <= set(expected)
    assert "rights" in wrong
    for name, text in wrong.items():
        assert expected[name] in text
        assert "user_script" not in text


def test_every_command_of_the_engine_is_tried() -> None:
    lua = "".join(path.read_text() for path in (ENGINE / "lua").rglob("*.lua"))
    assert {line.split()[0] for line in SCRIPT_COMMANDS} == set(re.findall(r"\bcall\('([A-Z]+)'", lua))
    python = "".join(
        path.read_text() for path in ENGINE.glob("*.py") if not path.name.startswith(("inspection", "books"))
    )
    sent = set(re.findall(r"\.call\(b\"([A-Z]+)\"", python))
    assert sent - {"SCRIPT", "PING", "CLUSTER", "ASKING"} <= {line.split()[0] for line in COMMANDS}


def test_every_script_is_loaded() -> None:
    assert {"admit", "settle", "books"} <= set(script_names())


@on_valkey
async def test_an_error_of_redis_is_told_without_the_script(link: Link) -> None:
    await link.call("SET", "lw:{check}:rows", "not a hash")
    remark = (await try_rights(link))[-1]
    assert remark.verdict == "error"
    assert remark.text.startswith("Redis does not do what it is told: EXISTS") or "WRONGTYPE" in remark.text
    assert "user_script" not in remark.text
    with pytest.raises(ReplyError):
        await link.call("NOT-A-COMMAND")
