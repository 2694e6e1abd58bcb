"""Two gates, each a process of its own over one store, and all that stands around them: upstream, webhook, mail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.harness import MASTER_KEY, PATIENCE_S, Seen, Served, Upstream, chat_answer, first_of, plain, prices
from tests.smtp import Inbox, smtp_server

from llmweir.traffic.asgi import Send

SOURCE = Path(__file__).parents[2] / "src"
ADMIN = {"authorization": f"Bearer {MASTER_KEY}"}
_START_S = 30.0


@dataclass
class Surroundings:
    """What stands around the gates, in the event loop of the tests."""

    inbox: Inbox = field(default_factory=Inbox)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    """Requests that the upstream answers only once their event is set, by what their header x-hold says."""
    running: set[str] = field(default_factory=set)

    async def answer(self, seen: Seen, send: Send) -> None:
        """Tells the caller what reached the upstream; a request to be held waits."""
        hold = (seen.header(b"x-hold") or b"").decode()
        if hold:
            self.running.add(hold)
            await first_of(self.held[hold].wait())
        headers = {name.decode(): value.decode() for name, value in seen.headers}
        await plain({**chat_answer(), "seen": {"headers": headers, "body": seen.json()}})(seen, send)

    async def take_alert(self, request: Request) -> Response:
        """The webhook."""
        self.alerts.append(await request.json())
        return Response()


@dataclass(frozen=True)
class Weirs:
    """The two gates and their surroundings."""

    gates: tuple[httpx.AsyncClient, httpx.AsyncClient]
    around: Surroundings
    redis_url: str


@contextlib.asynccontextmanager
async def two_gates(redis_url: str, folder: Path) -> AsyncIterator[Weirs]:
    """Starts two gates over one store."""
    around = Surroundings()
    webhook = Starlette(routes=[Route("/hook", around.take_alert, methods=["POST"])])
    async with (
        Served(Upstream(around.answer)) as upstream,
        Served(webhook) as hook,
        smtp_server(around.inbox) as inbox,
    ):
        given = {
            "UPSTREAM": upstream.url, "REDIS_URL": redis_url, "PORT": "0", "MASTER_KEY": MASTER_KEY,
            "PRICE_FILE": str(prices(folder)), "ALERT_WEBHOOK_URL": f"{hook.url}/hook", "STORE_TIMEOUT_MS": "10000",
            "SMTP_URL": f"smtp://127.0.0.1:{inbox.port}?from=weir@example.org", "PUBLIC_URL": "http://weir.example.org",
        }  # fmt: skip
        async with _gate(given, folder / "one") as one, _gate(given, folder / "two") as two:
            yield Weirs((one, two), around, redis_url)


@contextlib.asynccontextmanager
async def _gate(settings: dict[str, str], folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Runs `llmweir serve` and yields a client of it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLMWEIR_")}
    given = {f"LLMWEIR_{name}": value for name, value in {**settings, "DATA_DIR": str(folder)}.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmweir.cli", "serve",
        cwd=folder.parent, env={**kept, **given, "PYTHONPATH": str(SOURCE)},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_START_S):
            line = (await process.stderr.readline()).decode()
        url = re.search(r" listening url=(\S+)", line)
        assert url is not None, line
        drained = asyncio.create_task(process.stderr.read())  # so that its log never blocks it
        async with httpx.AsyncClient(base_url=url[1], timeout=PATIENCE_S) as client:
            yield client
        process.send_signal(signal.SIGTERM)
        log = (await drained).decode()
        assert (await process.wait(), "Traceback" in log) == (0, False), log
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
