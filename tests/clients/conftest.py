"""A served gate, and a process in which the clients of others call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.cli.canned import gate
from tests.harness import MASTER_KEY, empty

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-clients" / ("Scripts" if sys.platform == "win32" else "bin")


class Clients:
    """The process of the clients: `clients("hanzoai.user.create", user_id="ana")` calls one of them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, of: str, *args: object, **kwargs: object) -> Any:
        """Calls, and returns what the client returned."""
        answer = self._ask(of, args, kwargs)
        assert "error" not in answer, answer
        return answer["result"]

    def fails(self, of: str, *args: object, **kwargs: object) -> tuple[str, int | None]:
        """Calls; returns the name of what the client raised, and the HTTP status."""
        answer = self._ask(of, args, kwargs)
        assert "error" in answer, answer
        return answer["error"], answer["status"]

    def _ask(self, of: str, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"of": of.split("."), "args": args, "kwargs": kwargs}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process of the clients has died"
        return json.loads(line)


@pytest.fixture(scope="package")
def server(url_of: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gate(url_of("valkey"), tmp_path_factory.mktemp("clients")) as url:
        yield url


@pytest.fixture
def admin(server: str, url_of: Callable[[str], str]) -> Iterator[httpx.Client]:
    """What is really there: the admin API with the master key, over an emptied store."""
    empty(url_of("valkey"))
    with httpx.Client(base_url=server, headers={"x-api-key": MASTER_KEY}, timeout=20) as admin:
        yield admin


@pytest.fixture(scope="package")
def environment(server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the clients; they look for nothing at home or abroad."""
    if not BIN.exists():
        pytest.skip("no .venv-clients here: scripts/clients makes it")
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    home = str(tmp_path_factory.mktemp("home"))
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*", "COLUMNS": "400", "TERM": "dumb"}
    return {**kept, **local, "HOME": home, "USERPROFILE": home, "SERVER": server, "KEY": MASTER_KEY}


@pytest.fixture(scope="package")
def process(environment: dict[str, str]) -> Iterator[Clients]:
    command = [BIN / "python", Path(__file__).with_name("driver.py")]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield Clients(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def clients(process: Clients, admin: httpx.Client) -> Clients:
    return process
