"""A line of an outbox file: the CRC-32 of the record's text as eight hex digits, a blank, the record as JSON."""

from __future__ import annotations

import json
import zlib

import msgspec

from llmweir.engine.asks import KeptSettlement

_CHECKSUM_BYTES = 8
_decode = msgspec.json.Decoder(KeptSettlement).decode
_encode = msgspec.json.Encoder().encode


def pack(kept: KeptSettlement) -> bytes:
    """The line of a record, its new line included; there is nothing in a record that it refuses."""
    try:
        text = _encode(kept)
    except (UnicodeEncodeError, OverflowError):  # half a surrogate pair, a number past 64 bits
        text = json.dumps(msgspec.structs.asdict(kept)).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def unpack(line: bytes) -> KeptSettlement | None:
    """The record of a line without its new line, or None where the line is not as it was written."""
    text = line[_CHECKSUM_BYTES + 1 :]
    if line[: _CHECKSUM_BYTES + 1] != b"%08x " % zlib.crc32(text):
        return None
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
