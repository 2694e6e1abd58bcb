"""`GET /openapi.json`: the table of routes as an OpenAPI 3.1 document, from the very models that validate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from llmweir.admin.access import Right
from llmweir.admin.routes import FORM, JSON, AdminRoute, Answer, Call

_PARAMETER = re.compile(r"\{(\w+)\}")
_REF = "#/components/schemas/"
_REASONS = {
    400: "Cannot be done as it is asked",
    401: "No key, an unknown one or an expired one",
    403: "The caller may not do this, or is blocked",
    404: "What was named does not exist",
    408: "The body did not arrive in time",
    409: "Something that must be unique exists already",
    410: "Not valid any more",
    413: "The body is too large",
    415: "The body has another content type",
    422: "The request is not valid",
    429: "Too many wrong keys came from this address",
    502: "The mail server did not take the mail",
    503: "The store is away, or there is no master key",
}
_NEEDS = {
    Right.OPEN: "Open to all.",
    Right.OWN_USAGE: "For every role; other users' only for admins and their viewers.",
    Right.OWN_READ: "For admins, internal users and their viewers; other users' only for admins and their viewers.",
    Right.OWN_KEYS: "For admins and internal users; other users' only for admins.",
    Right.READ_ALL: "For admins and their viewers.",
    Right.WRITE_ALL: "For admins.",
}


class ErrorBody(msgspec.Struct):
    """What went wrong; `code` is the status as text."""

    message: str
    type: str
    param: str | None
    code: str


class Error(msgspec.Struct):
    """A refusal."""

    error: ErrorBody


class Problem(msgspec.Struct):
    """What is wrong with one value, and where it stands in the request."""

    type: str
    loc: list[str | int]
    msg: str


class Invalid(msgspec.Struct):
    """All that is wrong with a request."""

    detail: list[Problem]


class OpenApiRoutes:
    """The document of a table of routes, this one among them."""

    def __init__(self, routes: Iterable[AdminRoute], version: str, key_headers: Sequence[str]) -> None:
        self._document = document([*routes, *self.routes], version, key_headers)

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """The rows of the table."""
        return (
            AdminRoute(
                method="GET",
                path="/openapi.json",
                right=Right.OPEN,
                handle=self.show,
                answer=dict[str, object],
                reads_store=False,
                summary="This document",
            ),
        )

    async def show(self, call: Call) -> Answer:
        """The document; its server is where it was fetched from."""
        return Answer({**self._document, "servers": [{"url": call.base_path or "/"}]})


def document(routes: Sequence[AdminRoute], version: str, key_headers: Sequence[str]) -> dict[str, object]:
    """Describes routes; `key_headers` are the headers beside `Authorization` that a key may come in."""
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    security = {"bearer": {"type": "http", "scheme": "bearer"}} | {
        name: {"type": "apiKey", "in": "header", "name": name} for name in key_headers
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llmweir",
            "version": version,
            "description": "The admin API: users, their limits, their keys and what they use.",
        },
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in security],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": security,
            "headers": {
                "RequestId": {"description": "Names this very call.", "required": True, "schema": {"type": "string"}},
                "RetryAfter": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
            },
        },
    }


def statuses(route: AdminRoute) -> list[int]:
    """Every status that a route can refuse with, in order."""
    found = {*route.refuses, *route.also}
    if route.reads_store:
        found.add(503)
    if route.right is not Right.OPEN:
        found |= {400, 401, 403, 429, 503}
    if route.body is not None:
        found |= {400, 408, 413, 415, 422}
    if route.query is not None:
        found.add(422)
    return sorted(found)


class _Schemas:
    """The schemas of all bodies and answers of a table, by the types that they are of."""

    def __init__(self, routes: Sequence[AdminRoute]) -> None:
        bodies = sorted({route.body for route in routes if route.body is not None}, key=lambda body: body.__name__)
        _, defined = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF + "{model}")
        self.components: dict[str, Any] = dict(defined.get("$defs", {}))
        answers = [answer for route in routes for answer in (route.answer, *route.also.values()) if answer is not None]
        kinds: list[Any] = [*answers, Error, Invalid]
        shown, components = msgspec.json.schema_components(kinds, schema_hook=_any_value, ref_template=_REF + "{name}")
        twice = self.components.keys() & components.keys()
        if twice:
            raise ValueError(f"Two shapes have the name {min(twice)}.")
        self.components |= components
        self._of = {id(kind): schema for kind, schema in zip(kinds, shown, strict=True)}

    def of(self, kind: object) -> Mapping[str, object]:
        """The schema of an answer."""
        return self._of[id(kind)]

    def parameters(self, query: type[BaseModel]) -> list[dict[str, object]]:
        """The parameters of a query string; lists hold their values between commas, empty is the same as absent."""
        schema = query.model_json_schema(ref_template=_REF + "{model}")
        self.components |= schema.get("$defs", {})
        required = schema.get("required", [])
        return [
            {
                "name": name,
                "in": "query",
                "required": name in required,
                "explode": False,
                "schema": member if name in required else {"anyOf": [member, {"const": ""}]},
            }
            for name, member in schema["properties"].items()
        ]


def _any_value(kind: type) -> dict[str, object]:
    if kind is object:
        return {"description": "Any JSON value."}
    raise NotImplementedError  # msgspec's way to be told that a type has no schema


def _operation(route: AdminRoute, schemas: _Schemas) -> dict[str, object]:
    operation: dict[str, object] = {
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', route.path)}".strip("_"),
        "summary": route.summary,
        "description": _NEEDS[route.right],
        "tags": [next(part for part in route.path.split("/") if part not in ("", "v2"))],
        "parameters": _parameters(route, schemas),
        "responses": _responses(route, schemas),
    }
    if route.right is Right.OPEN:
        operation["security"] = []
    if route.body is not None:
        content = {route.takes: {"schema": {"$ref": _REF + route.body.__name__}}}
        may_be_empty = route.body_optional or route.takes == FORM  # an empty form is one without fields
        operation["requestBody"] = {"required": not may_be_empty, "content": content}
    return operation


def _parameters(route: AdminRoute, schemas: _Schemas) -> list[dict[str, object]]:
    in_path: list[dict[str, object]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PARAMETER.findall(route.path)
    ]
    return in_path + (schemas.parameters(route.query) if route.query is not None else [])


def _responses(route: AdminRoute, schemas: _Schemas) -> dict[str, object]:
    answer = {} if route.answer is None else schemas.of(route.answer)
    responses: dict[str, object] = {"200": _response("What was asked for", answer, route.answers_in)}
    for status in statuses(route):
        responses[str(status)] = _refusal(route, status, schemas)
    return responses


def _refusal(route: AdminRoute, status: int, schemas: _Schemas) -> dict[str, object]:
    headers = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}} if status in (429, 503) else {}
    if route.error_page is not None:
        return _response(_REASONS[status], {"type": "string"}, route.answers_in, headers)
    kinds: list[object] = [Error]
    if status in route.also:
        kinds = [route.also[status]]
    elif status == 422:
        kinds = [Invalid, Error]
    found = [schemas.of(kind) for kind in kinds]
    return _response(_REASONS[status], found[0] if len(found) == 1 else {"anyOf": found}, JSON, headers)


def _response(
    description: str, schema: Mapping[str, object], media: str, headers: Mapping[str, object] | None = None
) -> dict[str, object]:
    return {
        "description": description,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}, **(headers or {})},
        "content": {media: {"schema": schema}},
    }
