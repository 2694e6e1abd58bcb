"""What a call to a cluster needs beside its receiver: where it goes, until when, and what became of it on the way."""

from __future__ import annotations

import asyncio
from typing import Protocol

from llmweir.engine.link import Link
from llmweir.engine.redis_url import Address
from llmweir.engine.wire import Receiver, Reply, ReplyError
from llmweir.errors import StoreUnavailableError


class Router(Protocol):
    """What sends calls to the nodes."""

    def route(self, call: RoutedCall, /) -> None:
        """Send a call by the map as it is now."""

    def redirected(self, call: RoutedCall, error: ReplyError, /) -> bool:
        """Send a call on, if that is what the error means."""


class RoutedCall:
    """One command for one slot: the receiver of its reply on the wire, which hands it on to its own."""

    __slots__ = ("_deadline_s", "_is_timed", "_link", "_router", "packed", "receiver", "redirections", "slot")

    def __init__(self, router: Router, packed: bytes, receiver: Receiver, slot: int, deadline_s: float) -> None:
        self._router = router
        self.packed = packed
        self.receiver = receiver
        self.slot = slot
        self._deadline_s = deadline_s
        self._is_timed = False
        self._link: Link | None = None
        self.redirections = 0

    @property
    def node(self) -> Address:
        """Where it was sent last."""
        assert self._link is not None  # noqa: S101 (only what was sent is answered)
        return self._link.target.addresses[0]

    def done(self) -> bool:
        """Whether its receiver has had a reply, an error, or has left."""
        return self.receiver.done()

    def set_result(self, reply: Reply) -> None:
        """Takes the reply."""
        self.receiver.set_result(reply)

    def set_exception(self, error: BaseException) -> None:
        """Takes an error: a redirection sends the call on, anything else is for the receiver."""
        if self.receiver.done() or (isinstance(error, ReplyError) and self._router.redirected(self, error)):
            return
        self.receiver.set_exception(error)

    def send(self, link: Link) -> None:
        """Sends it to a node."""
        self._link = link
        link.post(self.packed, self)

    def send_later(self, delay_s: float) -> None:
        """Sends it by the map of then, unless that is past the deadline."""
        self.expire_in_time()
        asyncio.get_running_loop().call_later(delay_s, self._send_again)

    def expire_in_time(self) -> None:
        """Holds it to its deadline, which a node that it is sent on to does not know."""
        if not self._is_timed:
            self._is_timed = True
            asyncio.get_running_loop().call_at(self._deadline_s, self._expire)

    def _send_again(self) -> None:
        if not self.receiver.done():
            self._router.route(self)

    def _expire(self) -> None:
        if not self.receiver.done():
            self.receiver.set_exception(StoreUnavailableError("it does not answer in time", may_be_done=True))


def tell_for_all(futures: list[asyncio.Future[Reply]], receiver: Receiver, *, needs_all: bool) -> None:
    """Hands a receiver the answer of several nodes, once all have answered.

    It is the first reply; the error of any node where it `needs_all`, else only where no node gave a reply.
    """

    def tell(gathered: asyncio.Future[list[Reply | BaseException]]) -> None:
        if gathered.cancelled() or receiver.done():
            return
        found = gathered.result()
        errors = [each for each in found if isinstance(each, BaseException)]
        replies = [each for each in found if not isinstance(each, BaseException)]
        if errors and (needs_all or not replies):
            receiver.set_exception(errors[0])
        elif replies:
            receiver.set_result(replies[0])
        else:
            receiver.set_exception(StoreUnavailableError("no node of the cluster can be reached"))

    asyncio.gather(*futures, return_exceptions=True).add_done_callback(tell)
