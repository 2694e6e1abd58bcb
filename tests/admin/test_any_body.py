"""Whatever is sent to any route, the answer is one that the document has; and it is never a fault of the program."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.admin.serving import call
from tests.backends import on_valkey

pytestmark = pytest.mark.asyncio

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["ana", "1d", "gpt-4o", "proxy_admin", "sk-1234567890123456", "a@b.c", 0, 1, 0.1, 2**53]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def calls(draw: st.DrawFn, document: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """A path with something in the place of its parameter, and some of its fields with anything in them."""
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    method, path, operation = draw(st.sampled_from(operations))
    path = path.replace("{key}", "sk-unknown").replace("{token}", "unknown")
    names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"]
    if method == "post":
        content = operation["requestBody"]["content"]
        schema = next(iter(content.values()))["schema"]["$ref"].rpartition("/")[2]
        names = list(document["components"]["schemas"][schema]["properties"])
    fields = st.dictionaries(st.sampled_from(names), VALUES, max_size=4) if names else st.just({})
    return method, path, draw(fields)


@on_valkey
async def test_no_call_is_answered_with_anything_but_what_the_document_says(
    api: httpx.AsyncClient,
) -> None:
    await call(api, "/user/new", user_id="ana")
    document = (await api.get("/openapi.json")).json()
    seen: list[int] = []

    @FEW
    @given(calls(document))
    def draw(made: tuple[str, str, dict[str, Any]]) -> None:
        drawn.append(made)

    drawn: list[tuple[str, str, dict[str, Any]]] = []
    draw()
    for method, path, fields in drawn:
        seen.append(await status_of(api, method, path, fields))
    assert max(seen) < 500
    assert {200, 422} <= set(seen)


async def status_of(api: httpx.AsyncClient, method: str, path: str, fields: dict[str, Any]) -> int:
    if method == "get":
        parameters = {name: str(value).encode("utf-8", "replace").decode() for name, value in fields.items()}
        return (await api.get(path, params=parameters)).status_code
    try:
        request = api.build_request("POST", path, json=fields)
    except (ValueError, UnicodeEncodeError):  # JSON has no word for NaN
        request = api.build_request("POST", path, content=str(fields).encode("utf-8", "replace"))
    return (await api.send(request)).status_code
