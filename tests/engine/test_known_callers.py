from __future__ import annotations

import contextlib
import os
import select
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmweir.decision import Caller
from llmweir.engine.known_callers import KnownCallers

NOW_MS = 1_800_000_000_000
HASH = "k" * 43
ADA = Caller(
    user_id="ada", user_alias="Ada", user_role="proxy_admin", teams=("a", "b"), metadata={"x": {"y": [1, None]}},
    guardrails=("pii",), permissions={"p": True}, key_alias="laptop",
)  # fmt: skip
BOB = Caller(user_id="bob")

WORKER = """
import sys
from pathlib import Path
from llmweir.decision import Caller
from llmweir.engine.known_callers import KnownCallers
known = KnownCallers(Path(sys.argv[1]))
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    known.saw(f"{sys.argv[2]}-{number}", Caller(user_id=str(number), metadata={"m": "x" * 200}))
    known.flush()
    print(number, flush=True)
"""


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        self.now_ms += 1
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "known-callers.sqlite"


@contextlib.contextmanager
def opened(path: Path, clock: Callable[[], int] | None = None, *, most: int = 100_000) -> Iterator[KnownCallers]:
    known = KnownCallers(path, most=most) if clock is None else KnownCallers(path, most=most, clock_ms=clock)
    try:
        yield known
    finally:
        known.close()


@contextlib.contextmanager
def worker(path: Path, name: str, count: int) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0], "the worker says nothing"
    return process.stdout.readline().decode().strip()


def start(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")


def rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM callers").fetchone()[0])


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """Give a folder nobody may write to, and be nobody, where the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        user = os.geteuid()
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o700)


def test_a_caller_that_was_seen_is_found_as_it_was_also_after_a_restart(path: Path) -> None:
    with opened(path) as known:
        known.saw(HASH, ADA)
        assert known.find(HASH) == ADA
    with opened(path) as known:
        assert known.find(HASH) == ADA
        assert known.find("another") is None
        assert known.find("", "ada") is None


def test_a_caller_that_the_app_named_is_found_by_its_user_id_apart_from_api_keys(path: Path) -> None:
    with opened(path) as known:
        known.saw("", BOB)
    with opened(path) as known:
        assert known.find("", "bob") == BOB
        assert known.find("bob") is None
        assert known.find("", "ada") is None


def test_the_request_of_which_a_caller_was_seen_is_not_kept(path: Path) -> None:
    with opened(path) as known:
        known.saw(HASH, Caller(user_id="ada", request_id="r1"))
        assert known.find(HASH) == Caller(user_id="ada")
        known.flush()
        assert known.find(HASH) == Caller(user_id="ada")


def test_nothing_is_on_disk_before_the_first_caller(path: Path) -> None:
    with opened(path) as known:
        known.lost(HASH, "ada")
        assert known.find(HASH) is None
        known.flush()
    assert not path.parent.exists()


def test_the_newest_profile_wins(path: Path, clock: Clock) -> None:
    with opened(path, clock) as known:
        known.saw(HASH, ADA)
        known.flush()
        known.saw(HASH, BOB)
        assert known.find(HASH) == BOB
    with opened(path, clock) as known:
        assert known.find(HASH) == BOB


@pytest.mark.parametrize("is_flushed", [False, True], ids=["before the flush", "after the flush"])
def test_a_caller_that_was_refused_is_forgotten_and_may_come_back(path: Path, clock: Clock, is_flushed: bool) -> None:
    with opened(path, clock) as known, opened(path, clock) as other:
        known.saw(HASH, ADA)
        known.flush()
        known.lost(HASH, "ada")
        if is_flushed:
            known.flush()
            assert other.find(HASH) is None
        assert known.find(HASH) is None
        known.saw(HASH, ADA)
        assert known.find(HASH) == ADA
        known.flush()
        assert other.find(HASH) == ADA


def test_what_another_worker_saw_before_a_refusal_does_not_bring_the_caller_back(path: Path, clock: Clock) -> None:
    with opened(path, clock) as late, opened(path, clock) as known:
        known.saw(HASH, ADA)
        known.flush()
        late.saw(HASH, ADA)
        known.lost(HASH, "ada")
        known.flush()
        assert late.find(HASH) is None
        late.flush()
        assert late.find(HASH) is None
        assert known.find(HASH) is None


def test_a_clock_that_was_ahead_does_not_keep_a_refused_caller_known(path: Path, clock: Clock) -> None:
    with opened(path, clock) as known:
        clock.now_ms += 86_400_000
        known.saw(HASH, ADA)
        known.flush()
        clock.now_ms = NOW_MS
        known.lost(HASH, "ada")
        assert known.find(HASH) is None
        known.flush()
        assert known.find(HASH) is None


def test_unknown_callers_leave_no_row(path: Path) -> None:
    with opened(path) as known:
        known.saw(HASH, ADA)
        for number in range(50):
            known.lost(f"guess-{number}", "")
        known.flush()
        assert rows(path) == 1


def test_the_file_holds_at_most_so_many_and_the_oldest_seen_go(path: Path, clock: Clock) -> None:
    with opened(path, clock, most=10) as known:
        for number in range(8):
            known.saw(f"k{number}", BOB)
        known.flush()
        clock.now_ms += 3_600_000
        known.saw("k0", BOB)
        for number in range(8, 13):
            known.saw(f"k{number}", BOB)
        known.flush()
        assert rows(path) == 10
        gone = [number for number in range(13) if known.find(f"k{number}") is None]
        assert gone == [1, 2, 3]


def test_memory_holds_at_most_so_many_between_two_flushes(path: Path) -> None:
    with opened(path, most=5) as known:
        for number in range(20):
            known.saw(f"k{number}", BOB)
            known.lost(f"l{number}", "")
        assert (len(known._seen), len(known._lost)) == (5, 5)
        assert known.find("k19") == BOB


def test_the_file_is_its_owners_alone_and_holds_no_request(path: Path) -> None:
    with opened(path) as known:
        known.saw(HASH, Caller(user_id="ada", request_id="request-one"))
        known.flush()
        found = {each.name: oct(stat.S_IMODE(each.stat().st_mode)) for each in [path.parent, *path.parent.iterdir()]}
        assert found.pop("data") == "0o700"
        assert set(found.values()) == {"0o600"}
        assert not any(b"request-one" in each.read_bytes() for each in path.parent.iterdir())


def test_a_caller_seen_again_unchanged_is_not_written_again(path: Path) -> None:
    with opened(path) as known:
        known.saw(HASH, ADA)
        known.flush()
        with contextlib.closing(sqlite3.connect(path)) as watcher:
            version = watcher.execute("PRAGMA data_version").fetchone()
            known.saw(HASH, ADA)
            known.flush()
            assert watcher.execute("PRAGMA data_version").fetchone() == version
            known.saw(HASH, BOB)
            known.flush()
            assert watcher.execute("PRAGMA data_version").fetchone() != version


def test_what_is_no_json_is_left_out_and_the_others_are_kept(path: Path) -> None:
    with opened(path) as known:
        known.saw("odd", Caller(user_id="odd", metadata={"x": object()}))
        known.saw(HASH, ADA)
    with opened(path) as known:
        assert (known.find("odd"), known.find(HASH)) == (None, ADA)


# --- several processes


def test_workers_that_start_and_write_at_once_lose_nothing(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(path, str(number), 40)) for number in range(4)]
        for process in workers:
            start(process)
        for process in workers:
            output, complaints = process.communicate(timeout=50)
            assert (process.returncode, complaints) == (0, b"")
            assert len(output.splitlines()) == 40
    assert rows(path) == 160


def test_after_kill_9_all_that_was_flushed_is_found(path: Path) -> None:
    with worker(path, "a", 1_000_000) as process:
        start(process)
        last = [int(line(process)) for _ in range(30)][-1]
        process.kill()
    with opened(path) as known:
        found = [known.find(f"a-{number}") for number in range(last + 1)]
        assert [caller and caller.user_id for caller in found] == [str(number) for number in range(last + 1)]
        known.saw(HASH, ADA)
        known.flush()
        assert known.find(HASH) == ADA


def test_a_child_process_uses_a_connection_of_its_own(path: Path) -> None:
    with opened(path) as known:
        known.saw(HASH, ADA)
        known.flush()
        known.find(HASH)
        child = os.fork()
        if not child:
            known.saw("child", BOB)
            known.flush()
            os._exit(0 if known.find(HASH) == ADA else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert known.find("child") == BOB
        known.saw("parent", BOB)
        known.flush()
        assert known.find("parent") == BOB


def test_flush_in_a_thread_and_saw_go_side_by_side(path: Path) -> None:
    with opened(path) as known:
        done = threading.Event()

        def flush() -> None:
            while not done.is_set():
                known.flush()

        thread = threading.Thread(target=flush)
        thread.start()
        try:
            for number in range(3000):
                known.saw(f"k{number}", BOB)
                known.lost(f"l{number}", "")
        finally:
            done.set()
            thread.join()
        known.flush()
        assert rows(path) == 3000
        assert (known._seen, known._lost) == ({}, {})


# --- files that are not as they should be


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"not a database, and long enough to be looked at" * 100, id="no database"),
        pytest.param(None, id="pages overwritten"),
        pytest.param(b"", id="another program's"),
    ],
)
def test_a_damaged_file_is_moved_aside_and_begun_anew(
    path: Path, caplog: pytest.LogCaptureFixture, damaged: bytes | None
) -> None:
    with opened(path) as known:
        for number in range(200):
            known.saw(f"k{number}", ADA)
    if damaged is None:
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    elif damaged:
        path.write_bytes(damaged)
    else:
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as another:
            another.execute("CREATE TABLE callers (something TEXT)")
    with opened(path) as known:
        assert known.find("k1") is None
        known.saw(HASH, ADA)
        known.flush()
        assert known.find(HASH) == ADA
    with opened(path) as known:
        assert known.find(HASH) == ADA
    assert len(list(path.parent.glob("known-callers.sqlite.damaged-*[0-9]"))) == 1
    assert caplog.text.count("known_callers_damaged") == 1


def test_a_worker_follows_when_another_moves_the_file_aside(path: Path) -> None:
    with opened(path) as known, opened(path) as other:
        known.saw("k1", ADA)
        known.flush()
        assert known.find("k1") == ADA
        for each in path.parent.iterdir():
            each.rename(f"{each}.damaged")
        other.saw("k2", BOB)
        other.flush()
        assert known.find("k2") == BOB
        known.saw("k3", BOB)
        known.flush()
        assert other.find("k3") == BOB


def test_a_row_that_cannot_be_read_is_nobodys(path: Path) -> None:
    with opened(path) as known:
        known.saw(HASH, ADA)
        known.flush()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE callers SET caller = ?", (b'{"user_id": 1}',))
        assert known.find(HASH) is None


def test_in_a_folder_that_cannot_be_written_it_stays_in_memory_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with unprivileged() as folder, opened(folder / "data" / "known.sqlite") as known:
        for _ in range(3):
            known.saw(HASH, ADA)
            known.flush()
        known.lost("another", "")
        known.flush()
        assert (known.find(HASH), known.find("another")) == (ADA, None)
    assert caplog.text.count("known_callers_in_memory_only") == 1


def test_where_a_file_stands_in_the_folders_place_it_stays_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").touch()
    with opened(tmp_path / "data" / "known.sqlite") as known:
        known.saw(HASH, ADA)
        known.flush()
        assert (known.find(HASH), known.find("another")) == (ADA, None)
    assert caplog.text.count("known_callers_in_memory_only") == 1


def test_it_is_written_once_the_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with opened(tmp_path / "data" / "known.sqlite") as known:
        known.saw(HASH, ADA)
        known.flush()
        (tmp_path / "data").unlink()
        known.flush()
        assert rows(tmp_path / "data" / "known.sqlite") == 1
