"""The admin API over ASGI for the tests, with a client that holds every answer against the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from llmweir.admin.app import AdminApi
from llmweir.admin.build import AdminOptions, admin_api
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.link import Link
from llmweir.engine.users import Users
from llmweir.metrics import Exposition, Metrics, Moment
from llmweir.traffic.identify import HeadReader

MASTER = "sk-master"
ADMIN = {"authorization": f"Bearer {MASTER}"}
VERSION = "1.2.3"
IDLE = Moment(is_store_up=True)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def api_of(users: Users, link: Link, *, master_key: str | None = MASTER, prefix: str = "", **options: Any) -> AdminApi:
    heads = HeadReader()
    return admin_api(
        link,
        users,
        ApiKeys(users),
        Exposition(Metrics(), VERSION, lambda: IDLE).text,
        AdminOptions(
            read_key=lambda headers: heads.read(headers).api_key,
            key_headers=heads.key_headers,
            master_key=master_key,
            prefix=prefix,
            version=VERSION,
            **options,
        ),
    )


def client_of(api: AdminApi, *, prefix: str = "", address: str = "192.0.2.1") -> httpx.AsyncClient:
    transport = TruthfulTransport(httpx.ASGITransport(api.app(), client=(address, 1)), prefix)
    return httpx.AsyncClient(transport=transport, base_url="http://gate", headers=ADMIN)


class TruthfulTransport(httpx.AsyncBaseTransport):
    """Asserts of every answer that the document knows it, and of every request that succeeds likewise."""

    def __init__(self, transport: httpx.ASGITransport, prefix: str) -> None:
        self._transport = transport
        self._prefix = prefix
        self._document: dict[str, Any] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._document:
            asked = httpx.Request("GET", f"http://gate{self._prefix}/openapi.json")
            self._document = json.loads(await (await self._transport.handle_async_request(asked)).aread())
        response = await self._transport.handle_async_request(request)
        await response.aread()
        assert response.headers["cache-control"] == "no-store"
        assert len(response.headers["x-request-id"]) == 32
        operation = self._operation(request)
        if operation is None:
            assert response.status_code in (404, 405)
            assert response.json()["error"]["code"] == str(response.status_code)
        else:
            self._check(operation, request, response)
        return response

    def _operation(self, request: httpx.Request) -> dict[str, Any] | None:
        if not request.url.path.startswith(self._prefix):
            return None
        path = request.url.path.removeprefix(self._prefix)
        template = next((each for each in self._document["paths"] if _fits(path, each)), path)
        methods: Mapping[str, dict[str, Any]] = self._document["paths"].get(template, {})
        return methods.get(request.method.lower().replace("head", "get"))

    def _check(self, operation: dict[str, Any], request: httpx.Request, response: httpx.Response) -> None:
        status, kind = str(response.status_code), response.headers["content-type"]
        assert status in operation["responses"], f"{request.method} {request.url.path} does not document {status}"
        content = operation["responses"][status]["content"]
        assert kind in content
        if kind == "application/json" and request.method != "HEAD":
            self._validate(content[kind]["schema"], response.json())
        if status == "200" and request.content and "application/json" in operation["requestBody"]["content"]:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            self._validate(schema, json.loads(request.content))

    def _validate(self, schema: dict[str, Any], value: object) -> None:
        Draft202012Validator({**schema, "components": self._document["components"]}).validate(value)


def _fits(path: str, template: str) -> bool:
    start, _, rest = template.partition("{")
    end = rest.partition("}")[2]
    return path == template if not rest else path.startswith(start) and path.endswith(end)


async def call(api: httpx.AsyncClient, path: str, **fields: Any) -> Any:
    """Posts fields and returns what a 200 holds."""
    answer = await api.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def read(api: httpx.AsyncClient, path: str, **parameters: Any) -> Any:
    """Gets a path and returns what a 200 holds."""
    answer = await api.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()
