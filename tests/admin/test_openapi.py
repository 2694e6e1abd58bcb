"""The OpenAPI document: valid, complete, and where its routes lie. That it is true is asserted by every other test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import create_model
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.admin.serving import ADMIN, api_of, read
from tests.backends import on_valkey

from llmweir.admin.access import Right
from llmweir.admin.openapi import document
from llmweir.admin.routes import AdminRoute, Answer, Call
from llmweir.engine.link import Link
from llmweir.engine.users import Users
from llmweir.records import NewUser

pytestmark = pytest.mark.asyncio

DOCS = (Path(__file__).parents[2] / "docs" / "admin.md").read_text()


@on_valkey
async def test_the_document_is_valid_and_has_every_route(api: httpx.AsyncClient, users: Users, link: Link) -> None:
    api.headers.pop("authorization")
    shown = await read(api, "/openapi.json")
    OpenAPIV31SpecValidator(shown).validate()
    table = api_of(users, link)._operations
    assert {path: set(methods) for path, methods in shown["paths"].items()} == {
        path: {method.lower() for method in methods} for path, methods in table.items()
    }


@on_valkey
async def test_every_operation_has_an_id_of_its_own_and_says_who_may(api: httpx.AsyncClient) -> None:
    shown = await read(api, "/openapi.json")
    operations = [operation for methods in shown["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] and operation["description"] for operation in operations)


@on_valkey
@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("post", "/user/new", {"200", "400", "401", "403", "408", "409", "413", "415", "422", "429", "502", "503"}),
        ("post", "/user/delete", {"200", "400", "401", "403", "404", "408", "413", "415", "422", "429", "503"}),
        ("get", "/user/list", {"200", "400", "401", "403", "422", "429", "503"}),
        ("get", "/health/liveliness", {"200"}),
        ("get", "/health/readiness", {"200", "503"}),
        ("get", "/openapi.json", {"200"}),
    ],
)
async def test_every_status_of_an_operation_is_there(
    api: httpx.AsyncClient, method: str, path: str, statuses: set[str]
) -> None:
    assert set((await read(api, "/openapi.json"))["paths"][path][method]["responses"]) == statuses


@on_valkey
async def test_open_routes_need_no_key_and_all_others_one(api: httpx.AsyncClient) -> None:
    shown = await read(api, "/openapi.json")
    is_open = {path for path, methods in shown["paths"].items() for each in methods.values() if "security" in each}
    assert is_open == {"/health/liveliness", "/health/readiness", "/openapi.json", "/invite/{token}"}
    headers = [scheme.get("name", "Authorization") for scheme in shown["components"]["securitySchemes"].values()]
    assert headers == ["Authorization", "x-api-key", "api-key", "ocp-apim-subscription-key", "x-goog-api-key"]
    assert shown["security"] == [{name: []} for name in shown["components"]["securitySchemes"]]


@on_valkey
@pytest.mark.parametrize(
    ("mount", "prefix", "server"), [("", "", "/"), ("", "/gate", "/gate"), ("/sub", "/gate", "/sub/gate")]
)
async def test_the_server_is_where_the_routes_lie(
    users: Users, link: Link, mount: str, prefix: str, server: str
) -> None:
    app: Any = api_of(users, link, prefix=prefix).app()
    app = Starlette(routes=[Mount(mount, app)]) if mount else app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gate", headers=ADMIN) as client:
        shown = (await client.get(f"{mount}{prefix}/openapi.json")).json()
        assert shown["servers"] == [{"url": server}]
        assert (await client.get(f"{server.rstrip('/')}/user/list")).status_code == 200


async def test_a_secret_is_write_only() -> None:
    password = NewUser.model_json_schema()["properties"]["password"]["anyOf"][0]
    assert (password["writeOnly"], password["format"]) == (True, "password")


async def test_two_shapes_of_one_name_are_no_document() -> None:
    async def nothing(_: Call) -> Answer:
        return Answer(None)

    body = create_model("Error", reason=(str, ""))
    row = AdminRoute(method="POST", path="/a", right=Right.OPEN, handle=nothing, summary="", body=body)
    with pytest.raises(ValueError, match="Two shapes have the name Error"):
        document([row], "1", ())


@on_valkey
async def test_every_route_and_every_status_stands_in_the_docs(api: httpx.AsyncClient) -> None:
    paths: dict[str, dict[str, Any]] = (await read(api, "/openapi.json"))["paths"]
    routes = [f"`{method.upper()} {path}`" for path, methods in paths.items() for method in methods]
    assert [route for route in routes if route not in DOCS] == []
    statuses = {status for methods in paths.values() for each in methods.values() for status in each["responses"]}
    assert [status for status in sorted(statuses - {"200"}) if f"| {status} | " not in DOCS] == []
