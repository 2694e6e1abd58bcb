"""Alerts as a webhook gets them, and what the log says where it does not."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.harness import Served

from llmweir.alerts import Alerts


def hook(got: list[dict[str, Any]], status: int) -> Starlette:
    async def take(request: Request) -> Response:
        got.append(await request.json())
        return Response(status_code=status)

    return Starlette(routes=[Route("/hook", take, methods=["POST"])])


async def alert(url: str | None) -> None:
    alerts = Alerts(url)
    alerts.soft_budget_crossed("ana", 1_500_000_001, 1_000_000_000)
    await alerts.aclose()


async def test_the_webhook_gets_who_spent_how_much_of_what(caplog: pytest.LogCaptureFixture) -> None:
    got: list[dict[str, Any]] = []
    async with Served(hook(got, 200)) as server:
        await alert(f"{server.url}/hook")
    assert len(got) == 1
    assert got[0].pop("at").endswith("Z")
    assert got[0] == {
        "text": "User ana has spent 1.500000001 USD, past the soft budget of 1 USD.",
        "event": "soft_budget_crossed",
        "user_id": "ana",
        "spend": 1.500000001,
        "limit": 1,
    }
    assert caplog.messages == ["soft_budget_crossed user_id='ana' spend_usd=1.500000001 soft_budget_usd=1"]


async def test_without_a_webhook_there_is_the_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await alert(None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_a_webhook_that_refuses_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with Served(hook([], 500)) as server:
        await alert(f"{server.url}/hook")
    assert caplog.messages[1:] == ["alert_refused event=soft_budget_crossed status=500"]


async def test_a_webhook_that_is_not_there_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    await alert("http://127.0.0.1:1/hook?token=secret")
    assert caplog.messages[1:] == ["alert_not_sent event=soft_budget_crossed error=ClientConnectorError"]
    assert "secret" not in caplog.text
