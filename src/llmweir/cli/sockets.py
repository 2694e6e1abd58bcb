"""Opens the port before anything else starts, so that a taken one is one clear line."""

from __future__ import annotations

import contextlib
import resource
import socket

import click

_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on the address; raises click.ClickException where it cannot be had.

    This process and its children may then hold as many connections as the system lets them: the usual 1024 are for
    programs that still use select().
    """
    _allow_many_files()
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        reason = error.strerror or str(error)
        raise click.ClickException(f"Cannot listen on {host} port {port}: {reason}.") from error
    listener.setblocking(False)
    return listener


def _allow_many_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower bound than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
