"""Reads the requests of the admin API: bounded bodies, content types, query strings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from llmweir.admin.errors import AdminError, invalid
from llmweir.admin.routes import FORM, JSON, AdminRoute

MAX_BODY_BYTES = 2 * 1024 * 1024
_MAX_PARAMETERS = 1_000


async def read_body(route: AdminRoute, request: Request, timeout_s: float) -> BaseModel | None:
    """Reads and validates the body that a route takes.

    Raises AdminError: 415 for another content type, 413 for too many bytes, 408 for what does not arrive in time, 422
    for what does not validate.
    """
    if route.body is None:
        return None
    _check_content_type(route.takes, request)
    content = await _content_of(request, timeout_s)
    if route.body_optional and not content.strip():
        return None
    try:
        if route.takes == JSON:
            return route.body.model_validate_json(content)
        return route.body.model_validate(_parameters_of(content, "body"))
    except ValidationError as error:
        raise invalid(error) from None  # what was sent may hold a password


def read_query(route: AdminRoute, request: Request) -> BaseModel | None:
    """Reads and validates the query string that a route takes; raises AdminError (422)."""
    if route.query is None:
        return None
    try:
        return route.query.model_validate(_parameters_of(request.scope["query_string"], "query"))
    except ValidationError as error:
        raise invalid(error, "query") from None


def _check_content_type(takes: str, request: Request) -> None:
    sent = request.headers.get("content-type", takes)
    kind, *parameters = (part.strip().lower() for part in sent.split(";"))
    charset = next((part[8:].strip('"') for part in parameters if part.startswith("charset=")), "utf-8")
    # curl calls any body a form; what is not JSON then is refused as that.
    is_kind = kind == takes or (takes == JSON and (kind.endswith("+json") or kind == FORM))
    if not is_kind or charset not in ("utf-8", "utf8", "us-ascii"):
        raise AdminError(415, f"The body of this call is {takes} in UTF-8; its content-type says otherwise.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise AdminError(415, "Send the body as it is, without a content-encoding.")


async def _content_of(request: Request, timeout_s: float) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > MAX_BODY_BYTES):
        raise _too_large()
    try:
        async with asyncio.timeout(timeout_s):
            return await _bounded(request)
    except TimeoutError as error:
        raise AdminError(408, "The body did not arrive in time.") from error
    except ClientDisconnect as error:  # nobody is there to read this
        raise AdminError(400, "The body ended too early.") from error


async def _bounded(request: Request) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(content)


def _too_large() -> AdminError:
    return AdminError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")


def _parameters_of(encoded: bytes, where: str) -> Mapping[str, str | list[str]]:
    """The parameters of a query or a form; those that come several times as lists, empty ones left out."""
    try:
        text = encoded.decode("ascii")
        pairs = parse_qsl(text, errors="strict", max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        message = f"Not URL-encoded UTF-8, or more than {_MAX_PARAMETERS} parameters."
        raise AdminError(422, message, details=[{"type": "urlencoded", "loc": [where], "msg": message}]) from error
    found: dict[str, str | list[str]] = {}
    for name, value in pairs:
        before = found.get(name)
        if before is None:
            found[name] = value
        else:
            found[name] = [*([before] if isinstance(before, str) else before), value]
    return found
