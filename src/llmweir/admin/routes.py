"""The table of the admin routes: routing, validation, authorisation and the OpenAPI document all come from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, Protocol, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict

from llmweir.admin.access import Identity, Right
from llmweir.admin.errors import AdminError

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
HTML = "text/html; charset=utf-8"
_Model = TypeVar("_Model", bound=BaseModel)


class Query(BaseModel):
    """The base of the models of query strings: unknown parameters are ignored, an empty value counts as absent."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, protected_namespaces=())


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a route: who calls, what was sent (validated), the parameters of the path, the client's address.

    `headers` are the request's, by their names in lower case; who calls is already read from them.
    `base_path` is what the paths of the table lie under: where the app is mounted, and the prefix of the admin API.
    """

    identity: Identity
    body: BaseModel | None = None
    query: BaseModel | None = None
    path: Mapping[str, str] = {}
    client: str = ""
    base_path: str = ""
    headers: Mapping[str, str] = {}


class Answer(msgspec.Struct, frozen=True):
    """What a route answers: `content` goes out as JSON, but bytes go out as they are, in the route's `answers_in`."""

    content: object
    status: int = 200
    headers: Mapping[str, str] = {}


class AdminRoute(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of the admin API.

    `body` validates the body (in `takes`: JSON, or a form whose fields are texts) and documents it; `query` does so
    for the query string. With `body_optional` an empty body is None. `answer` is the type of what a 200 holds (a
    TypedDict, msgspec.Struct, pydantic model or any type that msgspec has a schema for) and `answers_in` its media
    type. `refuses` names the statuses that the handler itself refuses with, beyond those that follow from the rest of
    the row, and `also` the types of what it answers with other statuses on its own. Without
    `reads_store` it answers while the store is away. `error_page` writes every refusal of a route that answers people
    instead of programs.
    """

    method: Literal["GET", "POST"]
    path: str
    right: Right
    handle: Callable[[Call], Awaitable[Answer]]
    summary: str
    body: type[BaseModel] | None = None
    body_optional: bool = False
    takes: str = JSON
    query: type[BaseModel] | None = None
    answer: object = None
    answers_in: str = JSON
    refuses: tuple[int, ...] = ()
    also: Mapping[int, object] = {}
    reads_store: bool = True
    error_page: Callable[[AdminError], Answer] | None = None


class Routes(Protocol):
    """A small class of handlers."""

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """The rows of the table that it serves."""
        ...


def sent(kind: type[_Model], value: BaseModel | None) -> _Model:
    """The body or the query of a call as the model that the route names; the app has validated it."""
    assert isinstance(value, kind)  # noqa: S101 (the table says so)
    return value
