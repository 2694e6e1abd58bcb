"""The target of the front door: the server's protocol, fed without a socket."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from tests.fuzz.inputs import Input, pieces
from uvicorn.server import ServerState

from llmweir.cli.front_door import FrontDoor, FrontDoorConfig

_MAX_HEAD_BYTES: Final = 600
_TURNS: Final = 60
Seen = tuple[str, str, list[tuple[bytes, bytes]], bytes]


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self._is_closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 2)}.get(name, default)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...


def connection(data: bytes) -> None:
    """Any bytes are requests or an error, alike in any pieces, and a head is never held beyond its bound."""
    source = Input(data)
    how, body = source.byte(), source.rest()
    loop = asyncio.new_event_loop()
    try:
        whole = loop.run_until_complete(_serve([body]))
        cut = loop.run_until_complete(_serve(pieces(body, how)))
    finally:
        loop.close()
    assert all(_head_bytes(seen) <= _MAX_HEAD_BYTES + len(body) for seen in cut)
    if b"h2c" not in body.lower() and len(body) <= _MAX_HEAD_BYTES and len(whole) <= 1 and len(cut) <= 1:
        assert cut == whole


def _head_bytes(seen: Seen) -> int:
    return sum(len(name) + len(value) for name, value in seen[2])


async def _serve(chunks: list[bytes]) -> list[Seen]:
    seen: list[Seen] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if message["type"] == "http.disconnect":
                return
        seen.append((scope["method"], scope["path"], list(scope["headers"]), body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = FrontDoorConfig(
        app, max_head_bytes=_MAX_HEAD_BYTES, head_timeout_s=60.0, log_config=None, lifespan="off", ws="none"
    )
    config.load()
    wire, door = Wire(), FrontDoor(config, server_state=ServerState(), app_state={})
    door.connection_made(wire)
    for chunk in chunks:
        if not wire.is_closing():
            door.data_received(chunk)
        for _ in range(3):
            await asyncio.sleep(0)
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    wire.close()
    door.connection_lost(None)
    for _ in range(3):
        await asyncio.sleep(0)
    return seen
