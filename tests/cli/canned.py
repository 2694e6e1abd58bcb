"""A real HTTP server whose answers a test writes, a whole gate, and the command line run against them."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import uvicorn
from click.testing import CliRunner, Result
from tests.harness import MASTER_KEY, settings_of

from llmweir.cli import main
from llmweir.cli.background import running
from llmweir.cli.sockets import bind
from llmweir.wiring import front

SOURCE = Path(__file__).parents[2] / "src"
KEY = "sk-admin-of-the-tests"
USER: dict[str, Any] = {
    "user_id": "ana",
    "user_email": "ana@example.org",
    "user_alias": None,
    "teams": ["search", "ads"],
    "user_role": "internal_user",
    "budget_duration": "1mo",
    "models": [],
    "tpm_limit": 30000,
    "rpm_limit": 60,
    "max_parallel_requests": None,
    "model_rpm_limit": {"gpt-4o": 10},
    "model_max_budget": {"gpt-4o": 2.5, "o1*": {"max_budget": 1, "budget_duration": "1d"}},
    "blocked": False,
    "metadata": {"note": "[red]not markup[/]"},
    "max_budget": 25,
    "soft_budget": None,
    "spend": 0.0000138,
    "reserved": 0,
    "model_spend": {},
    "budget_reset_at": "2027-01-31T12:00:00.000Z",
    "created_at": "2026-12-31T12:00:00.000Z",
    "updated_at": "2026-12-31T12:00:00.000Z",
}
TOKEN = "3f" * 32
ROW: dict[str, Any] = {
    "token": TOKEN,
    "key_name": "sk-...abcd",
    "key_alias": "ci",
    "user_id": "ana",
    "team_id": None,
    "models": ["gpt-4o"],
    "aliases": {},
    "metadata": {},
    "spend": 1.5,
    "max_budget": None,
    "budget_duration": None,
    "budget_reset_at": None,
    "rpm_limit": 5,
    "tpm_limit": None,
    "max_parallel_requests": None,
    "blocked": True,
    "created_at": "2026-12-31T12:00:00.000Z",
    "expires": None,
}
MINTED = {"key": "sk-minted-just-now-0123", "key_name": "sk-...0123", "token_id": TOKEN, "expires": None}


@dataclass
class Reply:
    """What is answered: JSON, or bytes as they are."""

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


@dataclass
class Call:
    """A call as it arrived."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class Canned:
    """A server: `reply` is asked for the answer to each call; `calls` keeps them."""

    reply: Callable[[Call], Reply | None]
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def body(self) -> Any:
        """The body of the last call."""
        return self.calls[-1].body


@contextlib.contextmanager
def canned(
    reply: Callable[[Call], Reply | None] | Reply | dict[str, Any], tls: ssl.SSLContext | None = None
) -> Iterator[Canned]:
    """Serves one reply, or what a function makes of the call; None hangs up without a word."""
    server = Canned(reply if callable(reply) else lambda _: reply if isinstance(reply, Reply) else Reply(reply))
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(server)) as listening:
        if tls is not None:
            listening.socket = tls.wrap_socket(listening.socket, server_side=True)
        server.url = f"http{'s' if tls else ''}://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            listening.shutdown()
            thread.join()


def _handler_of(server: Canned) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            url = urlsplit(self.path)
            sent = self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.loads(sent) if sent else None
            call = Call(
                self.command, url.path, parse_qs(url.query), {k.lower(): v for k, v in self.headers.items()}, body
            )
            server.calls.append(call)
            server.arrived.set()
            reply = server.reply(call)
            if reply is not None:
                self.send_response(reply.status)
                for name, value in {"content-length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)

        do_GET = answer  # noqa: N815 - the name by which the base calls it
        do_POST = answer  # noqa: N815 - likewise

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name in the base
            pass

    return Handler


@contextlib.contextmanager
def gate(redis_url: str, folder: Path) -> Iterator[str]:
    """Serves a whole gate, whose upstream nobody is; yields its URL. The master key is `MASTER_KEY`."""
    weir = front(settings_of(redis_url, folder, upstream="http://127.0.0.1:1"))
    config = uvicorn.Config(weir, ws="none", lifespan="on", log_config=None, log_level="critical")
    with running(config, bind("127.0.0.1", 0)) as url:
        yield url


def run(url: str, *words: str, key: str | None = KEY, typed: str | bytes = "") -> Result:
    """Runs a command in this process, without a terminal."""
    environment = {"LLMWEIR_SERVER": url, "LLMWEIR_MASTER_KEY": key, "COLUMNS": "80"}
    result = CliRunner().invoke(main, words, env=environment, input=typed)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def done(url: str, *words: str, key: str = MASTER_KEY, typed: str = "") -> str:
    """Runs a command that has to end well; returns what it says."""
    result = run(url, *words, key=key, typed=typed)
    assert result.exit_code == 0, result.output
    return result.stdout


def process(url: str, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Starts a command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "LLMWEIR_SERVER": url, "LLMWEIR_MASTER_KEY": KEY}
    environment |= {"COLUMNS": "80", **options.pop("environment", {})}
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-m", "llmweir.cli", *words], env=environment, text=True, **given)
