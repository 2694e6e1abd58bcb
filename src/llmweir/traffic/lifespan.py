"""The lifespan of an app that something is wrapped round: what wraps it starts before the app and stops after it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from llmweir.traffic.asgi import App, Message, Receive, Scope, Send

_log = logging.getLogger("llmweir")
_STARTED, _NOT_STARTED = "lifespan.startup.complete", "lifespan.startup.failed"
_STOPPED, _NOT_STOPPED = "lifespan.shutdown.complete", "lifespan.shutdown.failed"


async def wrap_lifespan(
    app: App,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    start: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
) -> None:
    """Serves the lifespan of `app` between `start` and `stop`.

    An app that knows no lifespan (it raises, or returns at once) is served for as long as the server runs, as the ASGI
    specification has it. Raises what `start` raises, and what an app raises that says that its startup failed.
    """
    asked: set[str] = set()
    said: dict[str, Message] = {}

    async def hear() -> Message:
        message = await receive()
        asked.add(message["type"])
        return message

    async def say(message: Message) -> None:
        said[message["type"]] = message
        if message["type"] in (_STARTED, _NOT_STARTED):
            await send(message)

    try:
        await start()
    except Exception as error:
        await receive()
        await send({"type": _NOT_STARTED, "message": str(error)})
        raise
    try:
        try:
            await app(scope, hear, say)
        except Exception as error:
            if _NOT_STARTED in said:
                raise
            _note(error, asked, said)
        if _NOT_STARTED in said:
            return
        if _STARTED not in said:
            await send({"type": _STARTED})
        while "lifespan.shutdown" not in asked:
            await hear()
    finally:
        await stop()
    await send(said.get(_NOT_STOPPED, {"type": _STOPPED}))


def _note(error: Exception, asked: set[str], said: dict[str, Message]) -> None:
    if "lifespan.shutdown" in asked:
        said.setdefault(_NOT_STOPPED, {"type": _NOT_STOPPED, "message": str(error)})
    elif asked:  # it took a message, so it is not one that knows no lifespan
        _log.warning("app_lifespan_raised", exc_info=error)
