"""What the gate knows of one request on its way."""

from __future__ import annotations

from llmweir.traffic.asgi import Receive, Scope, Send
from llmweir.traffic.formats.base import RequestFacts
from llmweir.traffic.identify import NO_HEAD
from llmweir.traffic.paths import Route

NO_ROUTE = Route("unknown", "openai")
"""Of a request whose path was not looked at yet."""

_NO_FACTS = RequestFacts("")


class GatedRequest:
    """One request on its way through the gate; filled in step by step."""

    __slots__ = (
        "body", "facts", "head", "is_passed", "key_hash", "receive", "request_id", "route", "scope", "send",
        "store_left_s", "user_id",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.request_id = request_id
        self.route: Route = NO_ROUTE
        self.head = NO_HEAD
        self.user_id = ""
        self.key_hash = ""
        self.body: bytes | None = None
        self.facts = _NO_FACTS
        self.is_passed = False  # on to the app
        self.store_left_s = 0.0  # of the time it may wait for the store, once it has asked it anything
