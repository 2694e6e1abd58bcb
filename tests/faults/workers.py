"""`llmweir serve` as a user runs it: a process group of its own, which is killed at the end whatever happened."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.faults.waiting import until

import llmweir

MASTER_KEY = "sk-master-of-the-faults"
SOURCE = Path(llmweir.__file__).parents[1]
"""Where the processes find the same llmweir as the tests."""


class Worker:
    """A server process, or a parent with several workers; `settings` are of its next start."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, object]) -> None:
        self.settings = dict(settings)
        self.url = ""
        self._log = folder / f"{name}.log"
        self._log_begins = 0
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that was started."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has logged since it was last started."""
        return self._log.read_bytes()[self._log_begins :].decode()

    @property
    def environment(self) -> dict[str, str]:
        """What it is told its settings by."""
        named = {f"LLMWEIR_{name.upper()}": str(value) for name, value in self.settings.items()}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMWEIR_")}
        return {**clean, "PYTHONPATH": str(SOURCE), "LLMWEIR_MASTER_KEY": MASTER_KEY, **named}

    async def start(self) -> None:
        """Starts it, on the port it had before, and waits until it listens and its health is told."""
        self.launch()
        await until(self._listens, f"{self._log.name} says where it listens")

    def launch(self) -> None:
        """Starts it, and does not wait."""
        with self._log.open("ab") as log:
            self._log_begins = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llmweir.cli", "serve"],
                cwd=self._folder, env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        found = re.search(r" listening url=(http://[\d.]+:(\d+))", self.log)
        if found is None:
            return False
        self.url, self.settings["port"] = found[1], found[2]
        return True

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone."""
        os.kill(self.pid, number)

    def send_group(self, number: signal.Signals) -> None:
        """Sends a signal to all of its group, as a terminal does."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kills it and its workers with SIGKILL."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.send_group(signal.SIGKILL)
            self._process.wait()

    async def ended(self) -> int:
        """Waits for its end; the exit code."""
        process = self._process
        assert process is not None
        await until(lambda: process.poll() is not None, f"{self._log.name} is the log of a process that has ended")
        return int(process.returncode)

    def children(self) -> list[int]:
        """The worker processes of a parent."""
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in pids if b"multiprocessing.spawn" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def resident_bytes(self) -> int:
        """The memory it takes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
