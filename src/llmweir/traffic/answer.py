"""What the gate answers itself: which errors it does that for, and the refusal in the caller's dialect."""

from __future__ import annotations

import logging
from typing import Final

from llmweir.decision import Refusal, Standing
from llmweir.engine.wire import ReplyError
from llmweir.errors import StoreUnavailableError, UnreadableRequestError
from llmweir.traffic import refusals
from llmweir.traffic.asgi import path_of
from llmweir.traffic.formats.error_body import error_body, problem_body, refusal_of
from llmweir.traffic.headers import standing_headers
from llmweir.traffic.paths import dialect_of
from llmweir.traffic.proxy import UpstreamUnavailableError
from llmweir.traffic.request import NO_ROUTE, GatedRequest

_log = logging.getLogger("llmweir.gate")


class Refused(Exception):  # noqa: N818 (an outcome, not an error)
    """A request is answered by the gate itself; `standing` is where the limits stood, where they were looked at."""

    def __init__(self, refusal: Refusal, standing: Standing | None = None) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.standing = standing


ANSWERED: Final = (Refused, UnreadableRequestError, StoreUnavailableError, ReplyError, UpstreamUnavailableError)
"""What the gate answers itself."""


def refusal_and_standing(error: Exception, is_passed: bool = False) -> tuple[Refusal, Standing | None]:
    """What the gate answers to its own errors; those of the app that a request was passed on to are raised again."""
    if is_passed and not isinstance(error, (Refused, UpstreamUnavailableError)):
        raise error
    match error:
        case Refused():
            return error.refusal, error.standing
        case UnreadableRequestError():
            return refusal_of(error), None
        case UpstreamUnavailableError():
            return refusals.upstream_unavailable(error.status), None
        case ReplyError():
            _log.error("store_refused error=%r", str(error))
    return refusals.STORE_UNAVAILABLE, None


async def answer(request: GatedRequest, refusal: Refusal, standing: Standing | None) -> None:
    """Answers a refused request in the caller's own dialect."""
    route = request.route
    dialect = route.dialect if route is not NO_ROUTE else dialect_of(path_of(request.scope))
    if b"application/problem+json" in request.head.accept:
        content_type, body = b"application/problem+json", problem_body(dialect, refusal, request.request_id)
    else:
        content_type, body = b"application/json", error_body(dialect, refusal, request.request_id)
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        *refusals.refusal_headers(refusal, request.request_id),
        *(standing_headers(standing, dialect) if standing is not None else ()),
    ]
    await request.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await request.send({"type": "http.response.body", "body": body})
