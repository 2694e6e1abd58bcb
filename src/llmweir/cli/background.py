"""Runs an ASGI app over real HTTP in a thread of this process, for the demo."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import click
import uvicorn

_POLL_S = 0.01
_STOP_TIMEOUT_S = 30.0


@contextlib.contextmanager
def running(config: uvicorn.Config, listener: socket.socket) -> Iterator[str]:
    """Yields the base URL of the app once it serves; stops it in good order after.

    Raises click.ClickException where it does not start; the log says why.
    """
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    host, port = listener.getsockname()[:2]
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise click.ClickException("A server of the demo did not start.")
            thread.join(_POLL_S)
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(_STOP_TIMEOUT_S)
        listener.close()
