"""`llmweir serve` as a process of its own, in front of the make-believe model."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from llmweir.cli.background import running
from llmweir.cli.model import app as model_app
from llmweir.cli.sockets import bind

SOURCE = Path(__file__).parents[2] / "src"
PATIENCE_S = 20.0
ADMIN = {"authorization": "Bearer sk-master"}
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    config = uvicorn.Config(model_app(), ws="none", lifespan="off", log_config=None, log_level="critical")
    with running(config, bind("127.0.0.1", 0)) as url:
        yield url


class Served:
    """A running server: its URL, its process, and the lines of its log so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        assert process.stderr is not None
        self._stderr = process.stderr
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = re.search(r"url=(\S+)", self.await_line("listening"))[1]  # type: ignore[index]

    def _read(self) -> None:
        for line in self._stderr:
            self.lines.append(line)

    def await_line(self, event: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := [line for line in self.lines if f" {event}" in line]):
            assert time.monotonic() < deadline, self.lines
            assert self.process.poll() is None, self.lines
            time.sleep(0.02)
        return found[0]

    def new_user(self, name: str, **limits: object) -> dict[str, str]:
        made = httpx.post(f"{self.url}/user/new", headers=ADMIN, json={"user_id": name, **limits}, timeout=PATIENCE_S)
        assert made.status_code == 200, made.text
        return {"authorization": f"Bearer {made.json()['key']}"}

    def chat(self, key: dict[str, str]) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", headers=key, json=CHAT, timeout=PATIENCE_S)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code


def command(*flags: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMWEIR_")}
    return subprocess.Popen(
        [sys.executable, "-m", "llmweir.cli", "serve", *flags],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(SOURCE), "LLMWEIR_MASTER_KEY": "sk-master", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def serving(upstream: str, folder: Path, *flags: str) -> Iterator[Served]:
    process = command("--upstream", upstream, "--port", "0", *flags, cwd=folder)
    try:
        yield Served(process)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE_S)
        assert process.stderr is not None
        process.stderr.close()


def test_one_worker_serves_with_the_upstreams_own_headers_and_stops_with_0(upstream: str, tmp_path: Path) -> None:
    with serving(upstream, tmp_path, "--open-paths", "GET /v1/models,/other") as served:
        assert f"upstream={upstream} store=valkey:{tmp_path / 'llmweir-data'} workers=1" in served.lines[0]
        answer = served.chat(served.new_user("ana", rpm_limit=5))
        assert answer.status_code == 200
        assert answer.headers.get_list("server") == ["uvicorn"]
        assert len(answer.headers.get_list("date")) == 1
        assert "server" not in served.chat({}).headers
        assert httpx.get(f"{served.url}/v1/models").status_code == 200
        upgrade = {"connection": "upgrade", "upgrade": "websocket"}
        assert httpx.get(f"{served.url}/v1/realtime", headers=upgrade).status_code == 403
        assert served.end() == 0
        assert "sk-" not in "".join(served.lines)
        assert served.lines[-1].endswith("INFO llmweir.serve stopped\n")


def test_a_list_may_be_json(upstream: str, tmp_path: Path) -> None:
    with serving(upstream, tmp_path, "--open-paths", '["/v1/models"]') as served:
        assert httpx.get(f"{served.url}/v1/models").status_code == 200


def test_two_workers_share_limits_and_a_killed_one_is_replaced(upstream: str, tmp_path: Path) -> None:
    with serving(upstream, tmp_path, "--workers", "2") as served:
        key = served.new_user("ana", rpm_limit=6)
        assert sorted(served.chat(key).status_code for _ in range(10)) == [200] * 6 + [429] * 4
        children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
        workers = [pid for pid in children if b"multiprocessing.spawn" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(int(workers[0]), signal.SIGKILL)
        assert f"pid={workers[0]} " in served.await_line("worker_replaced")
        assert [served.chat(key).status_code for _ in range(4)] == [429] * 4
        assert served.end() == 0


def test_workers_whose_parent_was_killed_drain_and_end(upstream: str, tmp_path: Path) -> None:
    with serving(upstream, tmp_path, "--workers", "2") as served:
        assert served.chat(served.new_user("ana")).status_code == 200
        children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
        served.process.kill()
        deadline = time.monotonic() + PATIENCE_S
        while any(Path(f"/proc/{pid}/exe").exists() for pid in children):
            assert time.monotonic() < deadline, children
            time.sleep(0.02)
        assert served.process.wait(PATIENCE_S) == -signal.SIGKILL


def test_a_redis_of_ones_own_is_named_without_its_password_and_may_be_away(upstream: str, tmp_path: Path) -> None:
    with serving(upstream, tmp_path, "--redis-url", "redis://me:secret@127.0.0.1:1/0") as served:
        assert "store=redis://127.0.0.1:1 " in served.lines[0]
        assert httpx.get(f"{served.url}/health/liveliness", timeout=PATIENCE_S).status_code == 200
        assert httpx.get(f"{served.url}/health/readiness", timeout=PATIENCE_S).status_code == 503
        assert served.end() == 0
        assert "secret" not in "".join(served.lines)


def test_without_a_master_key_it_says_how_to_set_one(upstream: str, tmp_path: Path) -> None:
    with serving(upstream, tmp_path, "--master-key", "") as served:
        assert "set LLMWEIR_MASTER_KEY" in served.await_line("no_master_key")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_lets_a_running_stream_finish_and_settles_it(upstream: str, tmp_path: Path, workers: str) -> None:
    with serving(upstream, tmp_path, "--workers", workers) as served:
        key = {**served.new_user("ana", max_budget=1), "x-model-gap-ms": "40"}
        body = {**CHAT, "stream": True}
        address = f"{served.url}/v1/chat/completions"
        with httpx.stream("POST", address, json=body, headers=key, timeout=PATIENCE_S) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            served.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert served.process.wait(PATIENCE_S) == 0
    with serving(upstream, tmp_path) as again:
        info = httpx.get(f"{again.url}/user/info?user_id=ana", headers=ADMIN).json()["user_info"]
        assert (info["reserved"], info["spend"] > 0) == (0, True)


def test_what_outlasts_the_drain_is_cut_and_settled(upstream: str, tmp_path: Path) -> None:
    with serving(upstream, tmp_path, "--drain-timeout-s", "1") as served:
        key = {**served.new_user("ana", max_budget=1), "x-model-gap-ms": "1000"}
        address = f"{served.url}/v1/chat/completions"
        with httpx.stream("POST", address, json={**CHAT, "stream": True}, headers=key, timeout=PATIENCE_S) as stream:
            next(stream.iter_lines())
            assert served.end() == 0
        assert "Traceback" not in "".join(served.lines)
    with serving(upstream, tmp_path) as again:
        info = httpx.get(f"{again.url}/user/info?user_id=ana", headers=ADMIN).json()["user_info"]
        assert (info["reserved"], info["spend"] > 0) == (0, True)


def test_heads_too_large_or_too_slow_are_cut(upstream: str, tmp_path: Path) -> None:
    with serving(upstream, tmp_path, "--max-header-bytes", "2000", "--body-timeout-s", "1") as served:
        assert _raw(served.url, b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 1900).startswith(b"HTTP/1.1 408 ")
        assert _raw(served.url, b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 2100).startswith(b"HTTP/1.1 431 ")
        whole = b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 2100 + b"\r\n\r\n"
        assert _raw(served.url, whole).startswith(b"HTTP/1.1 431 ")
        assert _raw(served.url, b"") == b""


def _raw(url: str, data: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(data)
        got = b""
        while chunk := connection.recv(65536):
            got += chunk
    return got


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        pytest.param(["--port", "x"], 2, "port: Input should be a valid integer", id="no number"),
        pytest.param(["--upstream", "nowhere"], 2, "upstream: should be an http:// or https:// URL", id="no URL"),
        pytest.param(["--upstream", ""], 2, "upstream is needed", id="no upstream"),
        pytest.param(["--port", "TAKEN"], 1, "Address already in use", id="taken port"),
        pytest.param(["--host", "256.0.0.1"], 1, "Cannot listen on 256.0.0.1", id="no address"),
        pytest.param(["--data-dir", "/proc/nowhere"], 1, "the bundled Valkey does not run", id="no folder"),
    ],
)
def test_what_cannot_work_ends_with_a_clear_line(
    upstream: str, tmp_path: Path, flags: list[str], code: int, says: str
) -> None:
    taken = upstream.rpartition(":")[2]
    flags = [taken if flag == "TAKEN" else flag for flag in flags]
    process = command("--upstream", upstream, "--port", "0", *flags, cwd=tmp_path)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert says in errors
    assert "Traceback" not in errors


def test_a_setting_from_the_environment_is_named_as_it_was_given(tmp_path: Path) -> None:
    process = command(cwd=tmp_path, LLMWEIR_WORKERS="many", LLMWEIR_UPSTREAM="http://127.0.0.1:1")
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "LLMWEIR_WORKERS: " in errors
