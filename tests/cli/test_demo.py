"""The demo's tour, as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

SOURCE = Path(__file__).parents[2] / "src"


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )


def test_the_tour_plays_all_its_steps_and_exits_0(tmp_path: Path) -> None:
    tour = python("-m", "llmweir.cli", "demo", "--once", cwd=tmp_path)
    assert tour.returncode == 0, tour.stdout + tour.stderr
    assert "All 8 steps came out as told." in tour.stdout
    assert tour.stdout.count("✓") == 8
    assert "\x1b" not in tour.stdout
    assert tour.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_environment_changes_nothing_of_the_tour(tmp_path: Path) -> None:
    tour = python("-m", "llmweir.cli", "demo", "--once", cwd=tmp_path, LLMWEIR_BUDGET_EXCEEDED_STATUS="402")
    assert tour.returncode == 0, tour.stdout + tour.stderr


def test_a_step_that_comes_out_otherwise_exits_1_and_says_what_differed(tmp_path: Path) -> None:
    program = (
        "from llmweir.cli import main\n"
        "from llmweir.cli.demo import USERS, DemoUser\n"
        "USERS['cleo'] = DemoUser({'max_parallel_requests': 2}, 'two at a time')\n"
        "main(['demo', '--once'])\n"
    )
    tour = python("-c", program, cwd=tmp_path)
    assert tour.returncode == 1
    assert "✗ statuses: [200, 429, 200] was to come, [200, 200, 200] came" in tour.stdout
    assert "1 of 8 steps came out otherwise" in tour.stdout


@contextlib.contextmanager
def running_demo(folder: Path) -> Iterator[str]:
    """Runs the demo until it has said all there is to try; yields that, and ends it with Ctrl-C."""
    command = [sys.executable, "-m", "llmweir.cli", "demo", "--port", "0", "--data-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "200"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        said = ""
        try:
            for line in demo.stdout:
                said += line
                if line == "Ctrl-C ends it.\n":
                    break
            yield said
        finally:
            demo.send_signal(signal.SIGINT)
            rest = demo.stdout.read()
        assert (demo.wait(45), rest) == (0, "\nStopping.\n")


def chat(said: str, user: str) -> httpx.Response:
    """The first call that the demo proposes for a user."""
    command = re.search(rf"^# {user}: .*\n(.*)", said, re.MULTILINE)
    assert command is not None
    url, key, body = re.findall(r"(http://\S+)|'authorization: (\S+ \S+)'|-d '(.*)'", command[1])
    headers = {"authorization": key[1], "content-type": "application/json"}
    return httpx.post(url[0], headers=headers, content=body[2], timeout=20)


def test_the_demo_says_what_to_try_and_keeps_its_data_where_it_is_told(tmp_path: Path) -> None:
    with running_demo(tmp_path) as said:
        assert [chat(said, "ana").status_code for _ in range(4)] == [200, 200, 200, 429]
        assert "in front of a make-believe model" in said
        assert re.search(r'OpenAI\(base_url="http://127.0.0.1:\d+/v1", api_key="sk-', said)
    with running_demo(tmp_path) as again:
        assert chat(again, "ana").status_code == 429


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with running_demo(tmp_path) as said:
        port = re.search(r"127.0.0.1:(\d+)/", said)
        assert port is not None
        second = python("-m", "llmweir.cli", "demo", "--port", port[1], cwd=tmp_path)
    assert second.returncode == 1
    assert second.stderr == f"Error: Cannot listen on 127.0.0.1 port {port[1]}: Address already in use.\n"
