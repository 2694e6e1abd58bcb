"""What the app behind gets of a request that was let in, and what it is told of the caller."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from llmweir.decision import Caller
from llmweir.traffic.asgi import Headers, Scope, path_of
from llmweir.traffic.paths import replace_model
from llmweir.traffic.request import GatedRequest

_UNSEEN = frozenset({"http.response.pathsend", "http.response.zerocopysend"})
"""ASGI extensions that send an answer's body past the gate."""


def for_app(request: GatedRequest, model: str) -> tuple[Scope, bytes]:
    """The request as the app behind gets it: aliases resolved, usage asked for, the answer in no content coding."""
    scope, body, facts, route = request.scope, request.body or b"", request.facts, request.route
    assert route.format is not None  # noqa: S101 (only what has a format has a body here)
    new_model = model if model != facts.model else None
    asks_usage = route.hides_usage_event(facts)
    if request.head.repeats:
        headers: Headers = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
    else:
        fields = request.head.fields
        fields.pop(b"accept-encoding", None)
        headers = list(fields.items())
    changes: Scope = {"headers": headers}
    if "extensions" in scope:  # an answer that is sent as a file cannot be metered
        changes["extensions"] = {name: value for name, value in scope["extensions"].items() if name not in _UNSEEN}
    if new_model is not None and route.path_model is not None:
        path = path_of(scope)
        root_path = scope["path"].removesuffix(path)
        path, raw_path = replace_model(path, new_model)
        changes["path"], changes["raw_path"] = root_path + path, quote(root_path).encode() + raw_path
    if new_model is not None or asks_usage:
        body = route.format.rewrite(body, request.head.content_type, model=new_model, include_usage=asks_usage)
        headers[:] = [header for header in headers if header[0] != b"content-length"]
        headers.append((b"content-length", b"%d" % len(body)))
    return {**scope, **changes}, body


def without_key(scope: Scope, key: bytes) -> Scope:
    """The request without the headers that hold a key: the one that may do everything stays here."""
    return {**scope, "headers": [header for header in scope["headers"] if not key or key not in header[1]]}


def give_caller(scope: Scope, profile: Caller, request_id: str) -> None:
    """Tells the app who is calling."""
    caller = msgspec.structs.replace(profile, request_id=request_id)
    scope["state"] = {**scope.get("state", {}), "llmweir": caller}
