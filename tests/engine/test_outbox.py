from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backends import Clock

from llmweir.engine import outbox_aside
from llmweir.engine.asks import KeptSettlement
from llmweir.engine.outbox import Outbox
from llmweir.engine.outbox_lines import pack, unpack
from llmweir.engine.wall_clock import wall_clock_ms

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000

WORKER = """
import sys
from pathlib import Path
from llmweir.engine.asks import KeptSettlement
from llmweir.engine.outbox import Outbox
folder, name, action = sys.argv[1:]
outbox = Outbox(Path(folder), fsync="everysec", max_bytes=1 << 30, max_age_ms=86_400_000, file_bytes=4096)
if action == "keep":
    for number in range(1_000_000):
        outbox.keep(KeptSettlement(request_id=f"{name}-{number}", user_id="ada"))
        print(f"{name}-{number}", flush=True)
elif action == "replay":
    outbox.adopt()
    while kept := outbox.oldest(7):
        print(*(each.request_id for each in kept[:3]), sep="\\n", flush=True)
        outbox.confirm(3)
else:
    sys.stdin.readline()
    print("adopted", outbox.adopt(), flush=True)
    print(*(each.request_id for each in outbox.oldest(100_000)), sep="\\n", flush=True)
    print("end", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW_MS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "outbox"


@contextlib.contextmanager
def opened(
    folder: Path,
    clock: Callable[[], int] = lambda: NOW_MS,
    *,
    fsync: Literal["always", "everysec"] = "everysec",
    max_bytes: int = 1 << 30,
    file_bytes: int = 8 << 20,
) -> Iterator[Outbox]:
    outbox = Outbox(folder, fsync=fsync, max_bytes=max_bytes, max_age_ms=DAY_MS, clock_ms=clock, file_bytes=file_bytes)
    try:
        yield outbox
    finally:
        outbox.close()


@contextlib.contextmanager
def worker(folder: Path, name: str, action: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), name, action],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def line(process: subprocess.Popen[bytes]) -> str:
    stream = pipe(process.stdout)
    assert select.select([stream], [], [], 30)[0], "the worker says nothing"
    return stream.readline().decode().strip()


def killed_after(process: subprocess.Popen[bytes], lines: int) -> list[str]:
    """Kill a worker once it has said so many lines; return all that it said, but for a last line cut short."""
    said = [line(process) for _ in range(lines)]
    process.kill()
    rest = pipe(process.stdout).read().decode()
    process.wait()
    return said + rest.split("\n")[:-1]


def record(number: int, at_ms: int = NOW_MS) -> KeptSettlement:
    return KeptSettlement(request_id=f"r{number}", user_id="ada", at_ms=at_ms, input_tokens=number)


def ids(kept: list[KeptSettlement]) -> list[str]:
    return [each.request_id for each in kept]


def names(*numbers: int) -> list[str]:
    return [f"r{number}" for number in numbers]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("settlements-*"))


def drained(outbox: Outbox, most: int = 1000) -> list[str]:
    """Confirm all there is, and return it."""
    all_of_it: list[str] = []
    while kept := outbox.oldest(most):
        all_of_it += ids(kept)
        outbox.confirm(len(kept))
    return all_of_it


class Disk:
    """Stands in for os.write: refuses with `error` while it is set, after it has taken `takes_bytes` of what came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self.takes_bytes = 0
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        if not self.error:
            return self._write(fd, data)
        if self.takes_bytes:
            taken, self.takes_bytes = self.takes_bytes, 0
            return self._write(fd, data[:taken])
        raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


# --- what it keeps, and in what order


def test_nothing_is_on_disk_before_the_first_record(folder: Path) -> None:
    with opened(folder) as outbox:
        assert (outbox.adopt(), outbox.oldest(10), outbox.records, outbox.bytes) == (0, [], 0, 0)
        outbox.sync()
        outbox.confirm(3)
        outbox.refuse_oldest()
        assert outbox.has_room
    assert not folder.parent.exists()


def test_a_record_comes_back_with_every_field_as_it_was(folder: Path) -> None:
    kept = KeptSettlement(
        request_id="r", user_id='a\n"é', key_hash="h", model="m", at_ms=NOW_MS, input_tokens=1, output_tokens=2,
        cost_nanos=2**60, failed=True, cancelled=True, may_be_done=True,
    )  # fmt: skip
    with opened(folder) as outbox:
        outbox.keep(kept)
        assert outbox.oldest(5) == [kept]
    with opened(folder) as outbox:
        assert outbox.adopt() == 1
        assert outbox.oldest(5) == [kept]


@pytest.mark.parametrize("size", [pytest.param(8 << 20, id="one file"), pytest.param(300, id="many files")])
def test_records_come_in_the_order_they_were_kept_and_go_once_confirmed(folder: Path, size: int) -> None:
    with opened(folder, file_bytes=size) as outbox:
        for number in range(50):
            outbox.keep(record(number))
        assert ids(outbox.oldest(7)) == names(*range(7))
        assert ids(outbox.oldest(3)) == names(*range(3))
        outbox.confirm(4)
        outbox.keep(record(50))
        assert (outbox.records, ids(outbox.oldest(5))) == (47, names(4, 5, 6, 7, 8))
        assert drained(outbox, 6) == names(*range(4, 51))
        assert (outbox.records, outbox.bytes, files(folder)) == (0, 0, [])


def test_a_file_goes_as_soon_as_all_of_it_is_confirmed(folder: Path) -> None:
    with opened(folder, file_bytes=1) as outbox:
        for number in range(3):
            outbox.keep(record(number))
        before = files(folder)
        outbox.oldest(3)
        outbox.confirm(2)
        assert files(folder) == before[2:]


def test_only_what_was_handed_out_can_be_confirmed(folder: Path) -> None:
    with opened(folder) as outbox:
        outbox.keep(record(1))
        outbox.oldest(10)
        outbox.keep(record(2))
        outbox.confirm(10)
        assert ids(outbox.oldest(10)) == names(2)


def test_there_is_room_until_the_files_have_reached_their_most(folder: Path) -> None:
    with opened(folder, max_bytes=len(pack(record(0))) * 2) as outbox:
        rooms = []
        for number in range(3):  # the third is over it: what was used is never dropped
            outbox.keep(record(number))
            rooms.append(outbox.has_room)
        assert len(drained(outbox)) == 3
        assert [*rooms, outbox.has_room] == [True, False, False, True]


def test_files_are_their_owners_alone(folder: Path) -> None:
    with opened(folder) as outbox:
        outbox.keep(record(1))
        found = [folder.parent, folder, *files(folder)]
        assert [oct(stat.S_IMODE(path.stat().st_mode)) for path in found] == ["0o700", "0o700", "0o600"]


def test_with_always_file_and_folder_are_synced_before_keep_returns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    with opened(folder, fsync="always") as outbox:
        outbox.keep(record(1))
        assert (synced[0], set(synced[1:])) == ("file", {"folder"})
        synced.clear()
        outbox.keep(record(2))
        assert synced == ["file"]
        outbox.sync()
        assert synced == ["file"]


def test_with_everysec_sync_takes_what_is_new_and_nothing_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with opened(folder, file_bytes=1) as outbox:
        outbox.keep(record(1))
        outbox.keep(record(2))
        assert not synced
        outbox.sync()
        assert len(synced) >= 2
        synced.clear()
        outbox.sync()
        assert not synced


def test_sync_in_a_thread_and_keep_go_side_by_side(folder: Path) -> None:
    with opened(folder, file_bytes=2000) as outbox:
        done = threading.Event()

        def sync() -> None:
            while not done.is_set():
                outbox.sync()

        thread = threading.Thread(target=sync)
        thread.start()
        try:
            for number in range(2000):
                outbox.keep(record(number))
        finally:
            done.set()
            thread.join()
        assert drained(outbox) == names(*range(2000))
        assert outbox.failed_writes == 0


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(KeptSettlement(request_id="r", user_id="a", model="\ud800"), id="half a surrogate pair"),
        pytest.param(KeptSettlement(request_id="r", user_id="a", cost_nanos=2**70), id="a number past 64 bits"),
    ],
)
def test_what_no_json_can_hold_is_still_kept_on_disk_and_stops_nothing(folder: Path, kept: KeptSettlement) -> None:
    with opened(folder) as outbox:
        outbox.keep(kept)
        outbox.keep(record(1))
        got = outbox.oldest(2)
        assert got == [kept, record(1)] or (got == [record(1)] and outbox.set_aside == 1)


# --- other workers' files


def test_dead_workers_records_come_first_oldest_worker_first(folder: Path, clock: Clock) -> None:
    for number in (1, 2):
        clock.now_ms += 1
        with opened(folder, clock) as dead:
            dead.keep(record(number))
    with opened(folder, clock) as outbox:
        outbox.keep(record(3))
        assert outbox.adopt() == 2
        assert (outbox.records, drained(outbox)) == (3, names(1, 2, 3))


def test_an_adoption_between_oldest_and_confirm_confirms_what_was_handed_out(folder: Path) -> None:
    with opened(folder) as dead:
        dead.keep(record(1))
    with opened(folder) as outbox:
        outbox.keep(record(2))
        assert ids(outbox.oldest(1)) == names(2)
        outbox.adopt()
        outbox.confirm(1)
        assert drained(outbox) == names(1)


def test_a_living_workers_files_are_left_alone(folder: Path) -> None:
    with opened(folder) as living, opened(folder) as other:
        living.keep(record(1))
        assert (other.adopt(), living.adopt()) == (0, 0)
        assert (other.records, living.records) == (0, 1)


def test_a_file_deleted_between_listing_and_locking_is_not_adopted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as dead:
        dead.keep(record(1))
    flock = fcntl.flock

    def late(fd: int, how: int) -> None:
        for path in files(folder):
            path.unlink()
        flock(fd, how)

    with opened(folder) as outbox:
        monkeypatch.setattr(fcntl, "flock", late)
        assert (outbox.adopt(), outbox.records) == (0, 0)


def test_a_new_file_that_another_process_takes_for_a_dead_workers_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as thief, opened(folder) as outbox:
        opens = os.open
        attempts: list[Path] = []

        def stolen(path: Path, flags: int, mode: int = 0o777) -> int:
            fd = opens(path, flags, mode)
            if flags & os.O_EXCL and not attempts:
                attempts.append(path)
                thief.adopt()
            return fd

        monkeypatch.setattr(os, "open", stolen)
        outbox.keep(record(1))
        assert len(attempts) == 1
        assert (outbox.failed_writes, drained(outbox), files(folder)) == (0, names(1), [])


def test_what_is_no_file_stays_where_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "settlements-1.jsonl").mkdir(parents=True)
    os.mkfifo(folder / "settlements-2.jsonl")
    (folder / "settlements-3.jsonl").symlink_to("/dev/null")
    with opened(folder) as outbox:
        assert outbox.adopt() == 0
    assert len(files(folder)) == 3
    assert "outbox_cannot_read" in caplog.text


def test_a_folder_that_is_a_file_is_kept_in_memory_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "outbox").touch()
    with opened(tmp_path / "outbox") as outbox:
        outbox.keep(record(1))
        assert (outbox.adopt(), outbox.has_room, ids(outbox.oldest(1))) == (0, False, names(1))
    assert "outbox_lost records=1" in caplog.text


def test_after_a_fork_parent_and_child_write_to_files_of_their_own(folder: Path) -> None:
    with opened(folder) as outbox:
        outbox.keep(record(1))
        child = os.fork()
        if not child:
            outbox.keep(record(2))
            seen = ids(outbox.oldest(10)) == names(2) and outbox.adopt() == 0
            os._exit(0 if seen else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        outbox.keep(record(3))
        assert ids(outbox.oldest(10)) == names(1, 3)
        assert outbox.adopt() == 1
        assert sorted(drained(outbox)) == names(1, 2, 3)


def test_a_child_that_does_nothing_does_not_hold_its_parents_files(folder: Path) -> None:
    reader, writer = os.pipe()
    with opened(folder) as outbox:
        outbox.keep(record(1))
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    try:
        with opened(folder) as other:
            deadline = time.monotonic() + 20
            while not other.adopt():
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)


# --- real processes that die


def test_after_kill_9_in_the_middle_of_writing_all_that_was_kept_is_there_in_order_once(folder: Path) -> None:
    with worker(folder, "a", "keep") as process:
        said = killed_after(process, 500)
    with opened(folder, wall_clock_ms) as outbox:
        adopted = outbox.adopt()
        found = drained(outbox)
        assert adopted == len(found)
        assert found in (said, [*said, f"a-{len(said)}"])  # one more may be whole whose name was not said
        assert outbox.set_aside == 0


def test_after_kill_9_in_the_middle_of_a_replay_a_third_replays_all_that_was_not_confirmed(folder: Path) -> None:
    name = "a" * 100  # so that what the second says fills its pipe long before it is through
    with worker(folder, name, "keep") as first:
        kept = killed_after(first, 3000)
    with worker(folder, "b", "replay") as second:
        replayed = killed_after(second, 200)
    assert replayed == kept[: len(replayed)]
    with opened(folder, wall_clock_ms) as third:
        third.adopt()
        found = drained(third)
    begins = kept.index(found[0])
    assert 0 < begins <= len(replayed) < len(kept)
    assert found in (kept[begins:], [*kept[begins:], f"{name}-{len(kept)}"])


def test_two_that_adopt_at_once_share_the_files_and_no_record_is_had_twice(folder: Path) -> None:
    with worker(folder, "a", "keep") as dead:
        kept = killed_after(dead, 2000)
    with worker(folder, "b", "adopt") as one, worker(folder, "c", "adopt") as two:
        for process in (one, two):
            pipe(process.stdin).write(b"go\n")
        found: list[str] = []
        for process in (one, two):
            adopted = int(line(process).removeprefix("adopted "))
            mine = [name for name in iter(partial(line, process), "end") if name]
            assert len(mine) == adopted
            found += mine
    assert len(found) == len(set(found))
    assert set(kept) <= set(found)


# --- disks that refuse


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("takes_bytes", [0, 20], ids=["nothing of a line", "half a line"])
def test_what_the_disk_refuses_is_kept_in_memory_and_written_when_it_takes_it_again(
    folder: Path, disk: Disk, caplog: pytest.LogCaptureFixture, error: int, takes_bytes: int
) -> None:
    with opened(folder) as outbox:
        outbox.keep(record(0))
        disk.error, disk.takes_bytes = error, takes_bytes
        for number in range(1, 400):
            outbox.keep(record(number))
        assert (outbox.has_room, outbox.records) == (False, 400)
        assert outbox.failed_writes >= 1
        assert caplog.text.count("outbox_disk_refuses") == 1
        disk.error = 0
        outbox.sync()
        assert outbox.has_room
    with opened(folder) as other:
        assert other.adopt() == 400
        assert drained(other) == names(*range(400))
        assert other.set_aside == 0


def test_keep_itself_tries_the_disk_again(folder: Path, disk: Disk) -> None:
    with opened(folder) as outbox:
        disk.error = errno.ENOSPC
        outbox.keep(record(0))
        disk.error = 0
        deadline, number = time.monotonic() + 20, 0
        while not outbox.has_room:
            assert time.monotonic() < deadline
            number += 1
            outbox.keep(record(number))
            time.sleep(0.01)
        assert drained(outbox) == names(*range(number + 1))


def test_what_stands_in_memory_is_replayed_too_and_not_again_once_it_is_on_disk(folder: Path, disk: Disk) -> None:
    with opened(folder) as outbox:
        outbox.keep(record(0))
        disk.error = errno.EIO
        for number in range(1, 6):
            outbox.keep(record(number))
        assert ids(outbox.oldest(4)) == names(0, 1, 2, 3)
        outbox.confirm(2)
        disk.error = 0
        outbox.adopt()
        assert outbox.has_room
        assert ids(outbox.oldest(10)) == names(2, 3, 4, 5)
        outbox.confirm(1)
        assert drained(outbox) == names(3, 4, 5)
        assert (outbox.records, files(folder)) == (0, [])


def test_a_limit_on_the_size_of_files_is_met_with_more_files(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with opened(folder) as outbox:
            for number in range(50):
                outbox.keep(record(number))
                outbox.sync()
            assert outbox.has_room
            assert outbox.failed_writes > 0
            assert drained(outbox) == names(*range(50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_sync_that_fails_is_counted_and_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    with opened(folder) as outbox, opened(folder, fsync="always") as always:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", broken)
            outbox.keep(record(1))
            outbox.sync()
            always.keep(record(2))
        assert (outbox.failed_writes, always.failed_writes) == (1, 1)
        synced: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", synced.append)
            always.sync()
        assert synced


def test_a_file_that_cannot_be_deleted_is_not_replayed_and_goes_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_path: Path) -> None:
        raise PermissionError(errno.EPERM, "no")

    with opened(folder) as outbox:
        outbox.keep(record(1))
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", refused)
            assert drained(outbox) == names(1)
            assert (outbox.adopt(), outbox.oldest(1), len(files(folder))) == (0, [], 1)
        outbox.adopt()
        assert files(folder) == []


def test_a_file_that_cannot_be_read_does_not_keep_the_others_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder, file_bytes=1) as outbox:
        outbox.keep(record(1))
        outbox.keep(record(2))
        reads, first = os.pread, []

        def broken(fd: int, count: int, offset: int) -> bytes:
            first.append(fd)
            if fd == first[0]:
                raise OSError(errno.EIO, "broken")
            return reads(fd, count, offset)

        with monkeypatch.context() as patched:
            patched.setattr(os, "pread", broken)
            assert ids(outbox.oldest(5)) == names(2)
        outbox.confirm(1)
        assert (outbox.records, drained(outbox)) == (1, names(1))


def test_a_file_that_somebody_deletes_is_written_to_no_more(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(folder) as outbox:
        outbox.keep(record(1))
        files(folder)[0].unlink()
        outbox.adopt()
        assert "outbox_file_gone" in caplog.text
        outbox.keep(record(2))
        assert len(files(folder)) == 1
        assert drained(outbox) == names(1, 2)


# --- what is set aside


def test_records_that_are_too_old_go_to_a_file_of_their_own_and_are_not_replayed(
    folder: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(folder, clock) as outbox:
        outbox.keep(record(1))
        outbox.keep(record(2, NOW_MS + DAY_MS))
        outbox.keep(record(3))
        assert ids(outbox.oldest(1)) == names(1)  # handed out, and then Redis is away for a day
        clock.now_ms += DAY_MS + 1
        assert ids(outbox.oldest(5)) == names(2)
        assert (outbox.set_aside, outbox.records) == (2, 1)
        assert "outbox_records_set_aside reason=too-old records=2" in caplog.text
        assert drained(outbox) == names(2)
    old = (folder / "too-old.jsonl").read_bytes().splitlines()
    assert [each and each.request_id for each in map(unpack, old)] == names(1, 3)
    assert files(folder) == []


def test_a_record_without_a_time_is_too_old_once_its_file_is(folder: Path, clock: Clock) -> None:
    with opened(folder, clock) as outbox:
        outbox.keep(record(1, at_ms=0))
        clock.now_ms += DAY_MS
        assert ids(outbox.oldest(1)) == names(1)
        clock.now_ms += 1
        assert (outbox.oldest(1), outbox.set_aside) == ([], 1)


def test_a_record_that_redis_refuses_is_set_aside_and_the_next_is_the_first(folder: Path) -> None:
    with opened(folder) as outbox:
        for number in range(3):
            outbox.keep(record(number))
        outbox.oldest(3)
        outbox.confirm(1)
        outbox.refuse_oldest()
        assert (ids(outbox.oldest(3)), outbox.set_aside) == (names(2), 1)
    refused = (folder / "refused.jsonl").read_bytes()
    assert refused == pack(record(1))
    assert oct(stat.S_IMODE((folder / "refused.jsonl").stat().st_mode)) == "0o600"


def test_what_cannot_be_set_aside_stays_in_its_file_until_it_can(
    folder: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(folder, fsync="always") as outbox:
        for number in range(3):
            outbox.keep(record(number))
        disk.error, disk.takes_bytes = errno.ENOSPC, 10
        outbox.oldest(3)
        outbox.refuse_oldest()
        assert (drained(outbox), outbox.set_aside, outbox.records) == (names(1, 2), 0, 1)
        assert len(files(folder)) == 1
        assert "outbox_cannot_set_aside" in caplog.text
        disk.error = 0
        outbox.adopt()
        assert (outbox.set_aside, outbox.records, files(folder)) == (1, 0, [])
    assert (folder / "refused.jsonl").read_bytes().splitlines()[-1] + b"\n" == pack(record(0))


def test_a_long_run_of_old_records_is_set_aside_bit_by_bit(folder: Path, clock: Clock) -> None:
    with opened(folder, clock) as outbox:
        for number in range(25_000):
            outbox.keep(record(number))
        clock.now_ms += DAY_MS + 1
        outbox.keep(record(-1, clock.now_ms))
        calls = 0
        while not (kept := outbox.oldest(1)):
            calls += 1
            assert calls < 5
        assert (ids(kept), calls, outbox.set_aside) == (["r-1"], 1, 25_000)


def test_a_line_with_a_wrong_checksum_is_set_aside_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(folder) as dead:
        for number in range(3):
            dead.keep(record(number))
    (path,) = files(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"r1", b"r9")
    path.write_bytes(b"".join(lines))
    with opened(folder) as outbox:
        assert outbox.adopt() == 3
        assert drained(outbox) == names(0, 2)
        assert (outbox.set_aside, outbox.records) == (1, 0)
    assert (folder / "damaged-lines.txt").read_bytes() == lines[1]
    assert "outbox_records_set_aside reason=damaged records=1" in caplog.text


def test_a_whole_line_of_what_is_no_settlement_is_set_aside(folder: Path) -> None:
    folder.mkdir(parents=True)
    text = b'{"request_id":1}'
    line_of_another = b"%08x %b\n" % (zlib.crc32(text), text)
    (folder / "settlements-1.jsonl").write_bytes(line_of_another + pack(record(1)))
    with opened(folder) as outbox:
        outbox.adopt()
        assert (drained(outbox), outbox.set_aside) == (names(1), 1)


def test_a_file_cut_short_under_the_worker_ends_there(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(folder) as outbox:
        for number in range(3):
            outbox.keep(record(number))
        os.truncate(files(folder)[0], len(pack(record(0))))
        assert drained(outbox) == names(0)
        assert (outbox.records, files(folder)) == (0, [])
    assert "outbox_file_cut_short" in caplog.text


WRITTEN = b"".join(pack(record(number)) for number in range(30))


@settings(max_examples=150)
@given(
    start=st.integers(0, len(WRITTEN)),
    length=st.integers(0, 400),
    put=st.one_of(st.binary(max_size=40), st.sampled_from([b"\n", b"\0" * 300, b"\r\n\n"])),
    is_cut=st.booleans(),
)
def test_whatever_happens_to_a_file_the_whole_lines_before_and_after_survive(
    start: int, length: int, put: bytes, is_cut: bool
) -> None:
    end = len(WRITTEN) if is_cut else min(len(WRITTEN), start + length)
    damaged = WRITTEN[:start] + put + WRITTEN[end:]
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "settlements-1.jsonl").write_bytes(damaged)
        with opened(Path(name)) as outbox:
            assert outbox.adopt() <= damaged.count(b"\n") + 1
            found = drained(outbox, 4)
            assert outbox.records == 0
        assert files(Path(name)) == []
    assert found == [name for name in names(*range(30)) if name in found]
    before = WRITTEN[:start].count(b"\n")
    after = 30 - WRITTEN[end:].count(b"\n") + 1
    assert set(names(*range(before))) <= set(found)
    assert set(names(*range(after, 30))) <= set(found)


def test_a_long_line_and_much_rubbish_are_read_in_pieces(folder: Path) -> None:
    long = KeptSettlement(request_id="long", user_id="ada", model="m" * 500_000, at_ms=NOW_MS)
    folder.mkdir(parents=True)
    rubbish = b"x" * (3 << 20)
    (folder / "settlements-1.jsonl").write_bytes(pack(long) + rubbish + b"\n" + pack(record(1)) + rubbish)
    with opened(folder) as outbox:
        outbox.adopt()
        assert drained(outbox) == ["long", "r1"]
        assert outbox.set_aside >= 2
    assert files(folder) == []


def test_memory_stays_flat_however_much_is_kept(folder: Path) -> None:
    def peak_bytes(records: int) -> int:
        with opened(folder / str(records), file_bytes=100_000) as outbox:
            tracemalloc.start()
            for number in range(records):
                outbox.keep(record(number))
            outbox.close()
            assert outbox.adopt() == records
            while kept := outbox.oldest(100):
                outbox.confirm(len(kept))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return peak

    assert peak_bytes(20_000) < peak_bytes(2000) + 300_000


def test_seldom_says_yes_once_in_its_interval() -> None:
    seldom = outbox_aside.Seldom(interval_s=60)
    assert [seldom.is_due() for _ in range(3)] == [True, False, False]
