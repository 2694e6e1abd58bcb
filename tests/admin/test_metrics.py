"""`GET /metrics` on a real server: who may read it, and whether its numbers are right after what has happened."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.admin.serving import bearer
from tests.backends import on_valkey
from tests.harness import (
    COST_NANOS,
    INPUT_TOKENS,
    MASTER_KEY,
    OUTPUT_TOKENS,
    Stage,
    around,
    chat_answer,
    eventually,
    held,
    plain,
    staged,
)

from llmweir import __version__
from llmweir.engine.link import Link
from llmweir.traffic import refusals
from llmweir.traffic.asgi import Message, Receive, Scope, Send
from llmweir.wiring import Weir

pytestmark = [pytest.mark.asyncio, on_valkey]

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture
async def stage(url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(url, tmp_path) as stage:
        yield stage


async def scrape(stage: Stage, path: str = "/metrics") -> dict[str, float]:
    """The values of all samples, by the name and the labels of each, once all that is settled has arrived."""
    await stage.idle()
    answer = await stage.http.get(path, headers=bearer(MASTER_KEY))
    assert (answer.status_code, answer.headers["content-type"]) == (200, MEDIA_TYPE)
    return samples(answer)


def samples(answer: httpx.Response) -> dict[str, float]:
    values = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            assert sample.labels.pop("worker") == str(os.getpid())
            labels = ",".join(value for value in (sample.labels.get(name) for name in LABELS) if value)
            values[sample.name.removeprefix("llmweir_") + (f" {labels}" if labels else "")] = sample.value
    return values


LABELS = ("outcome", "code", "kind", "version")


def changed(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}


USED = {
    "requests_total admitted": 1,
    "tokens_total input": INPUT_TOKENS,
    "tokens_total output": OUTPUT_TOKENS,
    "cost_usd_total": COST_NANOS / 1e9,
}


async def test_a_worker_that_has_done_nothing_is_idle_and_its_store_up(stage: Stage) -> None:
    told = await scrape(stage)
    assert {name: value for name, value in told.items() if value} == {"store_up": 1, f"build_info {__version__}": 1}
    assert told.keys() >= {"requests_total admitted", "in_flight", "outbox_records", "soft_budgets_crossed_total"}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_an_answer_counts_with_its_tokens_and_its_cost(stage: Stage, stream: bool) -> None:
    key = await stage.user("ana")
    before = await scrape(stage)
    assert (await stage.chat(key, stream=stream)).status_code == 200
    assert changed(before, await scrape(stage)) == pytest.approx(USED)


@pytest.mark.parametrize(
    ("fields", "key", "path", "code"),
    [
        pytest.param({"rpm_limit": 0}, None, "/v1/chat/completions", "rate_limit_exceeded", id="429"),
        pytest.param({"blocked": True}, None, "/v1/chat/completions", "user_blocked", id="403"),
        pytest.param({"blocked": True}, None, "/v1/messages", "user_blocked", id="403 of another dialect"),
        pytest.param({}, "sk-nobody", "/v1/chat/completions", "invalid_api_key", id="401"),
        pytest.param({}, None, "/v1/nothing", "path_not_gated", id="404"),
    ],
)
async def test_a_refusal_counts_by_its_code_and_nothing_else(
    stage: Stage, fields: dict[str, object], key: str | None, path: str, code: str
) -> None:
    made = await stage.user("ana", **fields)
    before = await scrape(stage)
    answer = await stage.chat(key or made, path=path, stream=False, max_tokens=5)
    assert answer.status_code >= 400
    found = changed(before, await scrape(stage))
    assert found == {f"requests_total refused,{code}": 1}


async def test_an_upstream_that_answers_with_an_error_has_failed_an_admitted_request(url: str, tmp_path: Path) -> None:
    async with staged(url, tmp_path, answer=plain({"error": "no"}, status=500)) as stage:
        assert (await stage.chat(await stage.user("ana"))).status_code == 500
        told = await scrape(stage)
    busy = {name: value for name, value in told.items() if value and name.endswith(("_total", "admitted"))}
    assert busy == {"requests_total admitted": 1, "requests_failed_total": 1}


async def test_an_upstream_that_cannot_be_reached_has_failed_too_and_is_no_refusal(url: str, tmp_path: Path) -> None:
    async with staged(url, tmp_path, upstream_timeout_s=0.02, answer=held(asyncio.Event(), plain({}))) as stage:
        answer = await stage.chat(await stage.user("ana"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, refusals.UPSTREAM_UNAVAILABLE)
        told = await scrape(stage)
    assert (told["requests_total admitted"], told["requests_failed_total"]) == (1, 1)
    assert [name for name in told if "refused" in name] == []


async def test_requests_in_flight_are_those_that_are_not_over(url: str, tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with staged(url, tmp_path, answer=held(go_on, plain(chat_answer()))) as stage:
        key = await stage.user("ana")
        asked = [asyncio.ensure_future(stage.chat(key)) for _ in range(3)]
        await eventually(lambda: len(stage.seen) == 3)
        told = await scrape(stage)
        assert (told["in_flight"], told["requests_total admitted"]) == (3, 0)
        go_on.set()
        await asyncio.gather(*asked)
        told = await scrape(stage)
    assert (told["in_flight"], told["requests_total admitted"]) == (0, 3)


async def test_a_soft_budget_that_is_crossed_counts_once_a_period(stage: Stage) -> None:
    key = await stage.user("ana", soft_budget=0.000000001)
    for _ in range(2):
        assert (await stage.chat(key)).status_code == 200
    assert (await scrape(stage))["soft_budgets_crossed_total"] == 1


async def test_what_no_limit_holds_is_not_counted(stage: Stage) -> None:
    key = await stage.user("ana")
    assert (await stage.http.get("/v1/models", headers=bearer(key))).status_code == 200
    assert (await stage.chat(MASTER_KEY)).status_code == 200
    told = await scrape(stage)
    assert {name: value for name, value in told.items() if value and name.endswith(("_total", "admitted"))} == {}


@pytest.mark.parametrize(
    ("role", "status"),
    [
        ("proxy_admin", 200),
        ("proxy_admin_viewer", 200),
        ("internal_user", 403),
        ("internal_user_viewer", 403),
        ("team", 403),
        ("customer", 403),
        (None, 401),
    ],
)
@pytest.mark.parametrize("is_public", [False, True], ids=["not public", "public"])
async def test_admins_and_viewers_may_read_it_and_all_where_it_is_public(
    url: str, tmp_path: Path, is_public: bool, role: str | None, status: int
) -> None:
    async with staged(url, tmp_path, metrics_public=is_public) as stage:
        headers = bearer(await stage.user("ana", user_role=role)) if role is not None else {}
        answer = await stage.http.get("/metrics", headers=headers)
        assert answer.status_code == (200 if is_public else status)
        if answer.status_code == 200:
            assert (answer.headers["content-type"], samples(answer)["store_up"]) == (MEDIA_TYPE, 1)


async def test_where_it_is_public_it_needs_no_master_key_to_be_set(url: str, tmp_path: Path) -> None:
    async with staged(url, tmp_path, metrics_public=True, master_key=None) as stage:
        assert (await stage.http.get("/metrics")).status_code == 200
    async with staged(url, tmp_path, master_key=None) as stage:
        assert (await stage.http.get("/metrics")).status_code == 503


async def test_around_an_app_it_lies_under_the_prefix(url: str, tmp_path: Path) -> None:
    async with around(url, tmp_path, admin_prefix="/gate") as stage:
        assert (await scrape(stage, "/gate/metrics"))["store_up"] == 1


async def test_while_the_store_is_away_it_says_so_and_counts_what_is_kept(url: str, tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with staged(url, tmp_path, answer=held(go_on, plain(chat_answer()))) as stage:
        key = await stage.user("ana")
        asked = asyncio.ensure_future(stage.chat(key))
        await eventually(lambda: len(stage.seen) == 1)
        take_store_away(stage.weir)
        assert (await stage.chat(key)).status_code == 503
        go_on.set()
        assert (await asked).status_code == 200
        told = await scrape(stage)
    assert (told["store_up"], told["outbox_records"], told["in_flight"]) == (0, 1, 0)
    assert told["requests_total refused,store_unavailable"] == 1


def take_store_away(weir: Weir) -> None:
    link = weir.engine.link
    assert isinstance(link, Link)
    link._open_circuit("the test has taken it away")


@pytest.mark.parametrize(("known", "counted"), [(True, "admitted"), (False, "refused,invalid_api_key")])
async def test_a_websocket_counts_as_one_request(url: str, tmp_path: Path, known: bool, counted: str) -> None:
    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] in ("websocket", "lifespan")

    async with around(url, tmp_path, app=nothing) as stage:
        key = await stage.user("ana") if known else "sk-nobody"
        before = await scrape(stage, "/llmweir/metrics")
        await connect(stage.weir, key)
        assert changed(before, await scrape(stage, "/llmweir/metrics")) == {f"requests_total {counted}": 1}


async def connect(weir: Weir, key: str) -> None:
    """Opens a WebSocket and leaves it to the app, or the gate, to close it."""

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(_: Message) -> None: ...

    headers = [(b"authorization", b"Bearer " + key.encode())]
    await weir({"type": "websocket", "path": "/echo", "raw_path": b"/echo", "headers": headers}, receive, send)


async def test_a_caller_cannot_make_more_of_the_metrics(stage: Stage) -> None:
    for number in range(20):
        answer = await stage.chat(f"sk-{number}", path=f"/v1/{number}", model=f"model-{number}")
        assert answer.status_code == 401
    refused = [name for name in await scrape(stage) if "refused" in name]
    assert refused == ["requests_total refused,invalid_api_key"]
