"""What an attacker, a maintainer and a prober found at the seams between the modules."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.testclient import TestClient

from llmweir.cli.background import running
from llmweir.cli.front_door import FrontDoorConfig
from llmweir.cli.sockets import bind
from llmweir.engine.housekeeping import Housekeeping
from llmweir.engine.link import Link
from llmweir.engine.outbox import Outbox
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.engine.wire import ReplyError
from llmweir.pricing import PriceBook
from llmweir.records import parse_new, parse_update
from llmweir.traffic.asgi import Receive, Scope, Send
from llmweir.traffic.identify import HeadReader
from llmweir.traffic.paths import Paths
from llmweir.usage import Usage
from llmweir.wiring import RateLimitMiddleware

MASTER = "sk-master"
ADMIN = {"authorization": f"Bearer {MASTER}"}


async def answer_json(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that knows no lifespan and answers everything alike."""
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    await receive()
    body = json.dumps({"usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


def test_a_client_that_gives_each_request_an_event_loop_of_its_own_is_served_and_limited(tmp_path: Path) -> None:
    app = RateLimitMiddleware(
        answer_json, identify=lambda _: "ann", default_user={"rpm_limit": 2}, data_dir=tmp_path / "data"
    )
    client = TestClient(cast(Any, app))
    body = {"model": "gpt-4o", "messages": []}
    statuses = [client.post("/v1/chat/completions", json=body).status_code for _ in range(3)]
    asyncio.run(app.aclose())
    assert statuses == [200, 200, 429]


class FullStore:
    """A store whose Redis refuses every write, until it does not."""

    def __init__(self) -> None:
        self.renewed = 0

    async def renew(self, *, older_than_s: float) -> None:
        """Refuses."""
        self.renewed += 1
        raise ReplyError("OOM command not allowed when used memory > 'maxmemory'.")

    def send_kept(self) -> None:
        """There is nothing."""


async def test_a_redis_that_refuses_a_renewal_does_not_stop_the_heartbeat(tmp_path: Path) -> None:
    store, outbox = FullStore(), Outbox(tmp_path / "outbox", fsync="everysec", max_bytes=1, max_age_ms=1)
    link = Link("unix:///nowhere")
    housekeeping = Housekeeping(link, cast(Store, store), outbox, None, None, renew_s=0.01)
    housekeeping.start()
    async with asyncio.timeout(10):
        while store.renewed < 3:  # noqa: ASYNC110 (it is looked at, not told)
            await asyncio.sleep(0.005)
    await housekeeping.stop()


UPGRADES = {"a WebSocket": (b"websocket", True), "in capitals": (b"WebSocket", True), "HTTP/2": (b"h2c", False)}


@pytest.mark.parametrize(("value", "upgrades"), UPGRADES.values(), ids=UPGRADES)
def test_only_the_offer_of_a_websocket_is_one(value: bytes, upgrades: bool) -> None:
    assert HeadReader().read([(b"upgrade", value)]).upgrades is upgrades


def test_a_deployment_is_the_same_model_with_extensions() -> None:
    route = Paths().route("POST", "/openai/deployments/gpt-4o/extensions/chat/completions")
    assert (route.kind, route.path_model) == ("metered", "gpt-4o")


def test_no_price_makes_more_nanos_than_the_scripts_can_count(tmp_path: Path) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({"gold": {"input": 1_000_000, "output": 1_000_000}}))
    rates = PriceBook(prices).rates("gold")
    assert rates is not None
    most = 9 * 10**15
    assert (
        rates.holds_nanos(10**9, 10**9, 0)[0]
        == rates.cost_nanos(Usage(input_tokens=10**9, output_tokens=10**9))
        == most
    )


async def test_a_password_sent_as_null_is_cleared(users: Users) -> None:
    await users.create(parse_new(b'{"user_id": "ann", "password": "correct horse"}'), password_hash="hash")
    await users.update(parse_update(b'{"user_id": "ann", "user_alias": "Ann"}'))
    kept = await users.get("ann")
    await users.update(parse_update(b'{"user_id": "ann", "password": null}'))
    cleared = await users.get("ann")
    assert kept is not None
    assert cleared is not None
    assert (kept.record.has_password, cleared.record.has_password) == (True, False)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers with the body it got."""
    assert scope["type"] == "http"
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def test_the_body_beside_an_offer_of_http_2_is_read_each_time() -> None:
    config = FrontDoorConfig(echo, max_head_bytes=4096, head_timeout_s=10, lifespan="off", log_level="error")
    head = b"POST / HTTP/1.1\r\nconnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\ncontent-length: 3\r\n\r\n"
    with (
        running(config, bind("127.0.0.1", 0)) as url,
        socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as peer,
    ):
        peer.settimeout(10)
        for body in (b"h2c", b"two"):
            peer.sendall(head)
            peer.sendall(body)
            answer = b""
            while not answer.endswith(body):
                answer += peer.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers without reading the body."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def test_a_body_that_trickles_in_after_its_answer_does_not_hold_the_connection() -> None:
    config = FrontDoorConfig(refuse, max_head_bytes=4096, head_timeout_s=0.05, lifespan="off", log_level="error")
    with (
        running(config, bind("127.0.0.1", 0)) as url,
        socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as peer,
    ):
        peer.settimeout(10)
        peer.sendall(b"POST / HTTP/1.1\r\ncontent-length: 1000\r\n\r\n")
        assert peer.recv(4096).startswith(b"HTTP/1.1 401")
        peer.sendall(b"x")
        assert peer.recv(4096) == b""
