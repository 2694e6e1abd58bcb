"""`llmweir check` as a process of its own, against servers that are well and servers that are not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.backends import load_all_scripts
from tests.engine.asking import an_ask, create, mint, passes, settle
from tests.servers import valkey_server

from llmweir.cli.check_place import data_dir_remark, outbox_remark, upstream_remark
from llmweir.engine import keys
from llmweir.engine.link import Link
from llmweir.engine.outbox_aside import FILES
from llmweir.engine.store import Store
from llmweir.engine.users import Users

SOURCE = Path(__file__).parents[2] / "src"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with valkey_server() as url:
        yield url


@pytest.fixture
def url(server: str) -> str:
    with redis.from_url(server, driver_info=None) as client:
        client.flushall()
    return server


def run_check(cwd: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMWEIR_")}
    return subprocess.run(
        [sys.executable, "-m", "llmweir.cli", "check", *flags],
        cwd=cwd,
        env=clean | {"PYTHONPATH": str(SOURCE), "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def report_of(cwd: Path, *flags: str, code: int = 0, **environment: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run it for machines: the document, and its checks by name."""
    done = run_check(cwd, "--json", *flags, **environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["ok"] is (code == 0)
    return document, {check["name"]: check for check in document["checks"]}


async def live(url: str) -> None:
    """Make a user who has settled one request and has one in flight."""
    link = Link(url, timeout_ms=10_000)
    try:
        await load_all_scripts(link)
        store, users = Store(link), Users(link)
        await create(users, "ana", user_email="ana@example.com", rpm_limit=100)
        await mint(users, "ana", key_alias="laptop")
        await passes(store, an_ask("r1", user_id="ana", tokens=5, nanos=9))
        await settle(store, "r1", user_id="ana", tokens=4, nanos=8)
        await passes(store, an_ask("r2", user_id="ana", tokens=5, nanos=9))
    finally:
        await link.aclose()


def set_config(url: str, **parameters: object) -> None:
    with redis.from_url(url, driver_info=None) as client:
        for name, value in parameters.items():
            client.config_set(name.replace("_", "-"), str(value))


def test_a_bundled_server_is_well_and_its_books_balance(tmp_path: Path) -> None:
    document, checks = report_of(tmp_path, "--books", LLMWEIR_DATA_DIR=str(tmp_path / "data"))
    assert {check["verdict"] for check in checks.values()} == {"ok"}
    assert list(checks) == [
        "settings", "prices", "data_dir", "outbox", "upstream",
        "redis", "version", "role", "persistence", "eviction", "clock", "scripts", "struct", "rights",
    ]  # fmt: skip
    assert checks["redis"]["text"].startswith("The bundled Valkey in ")
    assert "about a second" in checks["persistence"]["text"]
    assert document["books"]["balanced"] is True


def test_it_is_a_table_for_people(tmp_path: Path, url: str) -> None:
    asyncio.run(live(url))
    done = run_check(tmp_path, "--redis-url", url, "--books")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=2) for line in done.stdout.splitlines()]
    assert ["settings", "ok", "They are valid."] in rows
    assert next(row[1:] for row in rows if row[0] == "persistence")[0] == "warning"
    assert "Books of 1 user, 1 account, 1 lease; requests in flight: 1." in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "The books balance."


def test_books_that_do_not_balance_are_told_and_end_with_1(tmp_path: Path, url: str) -> None:
    asyncio.run(live(url))
    with redis.from_url(url, driver_info=None) as client:
        client.hset(keys.user_keys("ana").use.decode(), "j", 5)
    what = "The spend is 8 nanos, but its models and what was set by hand come to 13."
    document, _ = report_of(tmp_path, "--redis-url", url, "--user", "ana", code=1)
    assert document["books"]["balanced"] is False
    assert document["books"]["findings"] == [
        {"user_id": "ana", "what": what, "expected": 13, "found": 8, "is_note": False}
    ]
    done = run_check(tmp_path, "--redis-url", url, "--books")
    assert done.returncode == 1
    assert re.search(rf"wrong\s+ana\s+{re.escape(what)}", done.stdout)
    assert "The books do not balance: 1 finding." in done.stdout
    assert run_check(tmp_path, "--redis-url", url).returncode == 0


def test_a_user_that_no_list_shows_is_filed_again(tmp_path: Path, url: str) -> None:
    asyncio.run(live(url))
    directory, key_directory = keys.catalogue("users"), keys.catalogue("keys")
    with redis.from_url(url, driver_info=None) as client:
        client.delete(directory.rows, directory.place(keys.text_place("id")), key_directory.rows)
    document, _ = report_of(tmp_path, "--redis-url", url, "--books", code=1)
    assert document["books"]["unlisted_users"] == ["ana"]
    assert len(document["books"]["unlisted_keys"]) == 1
    document, _ = report_of(tmp_path, "--redis-url", url, "--books", "--repair")
    assert document["books"]["repaired"] is True
    document, _ = report_of(tmp_path, "--redis-url", url, "--books", "--repair", "--strict")
    assert document["books"]["repaired"] is False


def test_a_note_is_wrong_only_where_it_is_strict(tmp_path: Path, url: str) -> None:
    with redis.from_url(url, driver_info=None) as client:
        client.set(keys.api_key("HASH"), "ana")
    document, _ = report_of(tmp_path, "--redis-url", url, "--books")
    assert document["books"]["note_count"] == 1
    report_of(tmp_path, "--redis-url", url, "--books", "--strict", code=1)


def test_no_server_is_an_error_that_shows_no_password(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        _, checks = report_of(tmp_path, "--books", code=1, LLMWEIR_REDIS_URL=f"redis://app:hush-hush@127.0.0.1:{port}")
    assert checks["redis"]["verdict"] == "error"
    assert checks["redis"]["text"].startswith(f"redis://127.0.0.1:{port}: it cannot be reached (")
    assert "hush-hush" not in json.dumps(checks)


def test_a_wrong_password_is_an_error_that_says_so(tmp_path: Path, url: str) -> None:
    set_config(url, requirepass="right")
    scheme, _, where = url.partition("://")
    try:
        _, checks = report_of(tmp_path, "--redis-url", f"{scheme}://:wrong@{where}", code=1)
        assert "password" in checks["redis"]["text"]
        assert "wrong" not in json.dumps(checks)
        report_of(tmp_path, "--redis-url", f"{scheme}://:right@{where}")
    finally:
        with redis.from_url(f"{scheme}://:right@{where}", driver_info=None) as client:
            client.config_set("requirepass", "")


def test_a_replica_is_an_error(tmp_path: Path) -> None:
    with valkey_server() as url:
        with redis.from_url(url, driver_info=None) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
        _, checks = report_of(tmp_path, "--redis-url", url, "--books", code=1)
    assert ": it is a read-only replica" in checks["redis"]["text"]


def test_a_server_that_throws_keys_out_is_a_warning(tmp_path: Path, url: str) -> None:
    set_config(url, maxmemory="1gb", maxmemory_policy="allkeys-lru")
    try:
        _, checks = report_of(tmp_path, "--redis-url", url)
    finally:
        set_config(url, maxmemory=0, maxmemory_policy="noeviction")
    assert checks["eviction"]["verdict"] == "warning"
    assert "allkeys-lru" in checks["eviction"]["text"]


BAD_SETTINGS: dict[str, tuple[list[str], dict[str, str], str]] = {
    "a value": (["--port", "many"], {}, "port"),
    "a variable": ([], {"LLMWEIR_REDIS_URL": "http://example.com"}, "LLMWEIR_REDIS_URL"),
    "a price file": (["--price-file", "none.json"], {}, "none.json"),
    "a default user": (["--default-user", '{"rpm": 1}'], {}, "default_user"),
    "a misuse": (["--repair"], {}, "--books"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_are_not_valid_end_with_2(tmp_path: Path, case: str) -> None:
    flags, environment, named = BAD_SETTINGS[case]
    done = run_check(tmp_path, *flags, **environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert named in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "llmweir-data").exists()


def test_the_settings_come_from_the_file_too(tmp_path: Path, url: str) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text('{"house-model": {"input": 1, "output": 2}}')
    (tmp_path / "llmweir.toml").write_text(f"redis_url = {json.dumps(url)}\nprice_file = {json.dumps(str(prices))}\n")
    _, checks = report_of(tmp_path)
    assert checks["prices"]["text"] == "1 price of your own, and the catalogue."
    assert checks["redis"]["text"].startswith("Unix:///") or checks["redis"]["text"].startswith("unix:///")


def test_a_data_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert data_dir_remark(in_the_way / "data").verdict == "error"
    assert data_dir_remark(in_the_way).verdict == "error"
    assert data_dir_remark(tmp_path / "new" / "data").verdict == "ok"
    assert not (tmp_path / "new").exists()


def test_a_data_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may be root's, who may write anything
    assert data_dir_remark(tmp_path).text == f"{tmp_path} cannot be written."


def test_what_waits_in_the_outbox_is_told(tmp_path: Path) -> None:
    assert outbox_remark(tmp_path).text == "Nothing waits to be settled."
    folder = tmp_path / "outbox"
    folder.mkdir()
    (folder / "settlements-1-0.jsonl").write_bytes(b"one\ntwo\n")
    (folder / FILES["damaged"]).write_bytes(b"what?\n")
    remark = outbox_remark(tmp_path)
    assert remark.verdict == "warning"
    assert remark.text.startswith("2 settlements at most to replay")
    assert f"1 line set aside in {folder / FILES['damaged']}" in remark.text


def test_an_upstream_that_nobody_listens_at_is_a_warning() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        upstream = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert upstream_remark(upstream).verdict == "warning"
        listener.listen()
        assert upstream_remark(upstream).verdict == "ok"


def test_a_terminal_gets_no_control_characters(tmp_path: Path, url: str) -> None:
    with redis.from_url(url, driver_info=None) as client:
        client.hset(keys.user_keys("\x1b[31mred").record, "p", struct.pack("<q", 0))
    done = run_check(tmp_path, "--redis-url", url, "--books")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    assert "\\x1b[31mred" in done.stdout
