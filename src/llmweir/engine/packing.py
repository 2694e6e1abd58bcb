"""Commands packed ahead: the arguments that stay the same are written once, the others filled in per call.

Packing the twenty arguments of an admission anew costs as much Python time as parsing its reply; filling a template
costs a quarter of that.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeAlias

import hiredis


class Blank(Enum):
    """An argument that is filled in: a text takes two values (its length in bytes, the bytes), a number one."""

    TEXT = b"$%d\r\n%b\r\n"
    NUMBER = b"$17\r\n%017d\r\n"  # a fixed width, so that its length is a constant; Lua reads it as a decimal


Part: TypeAlias = "bytes | str | int | Blank"

_HEADER_ENDS: Final = b"\r\n"


def template(*parts: Part) -> bytes:
    """Packs a command with blanks: `template(...) % (values of the blanks, in order)` is ready for the wire."""
    packed = [b"*%d\r\n" % len(parts)]
    for part in parts:
        if isinstance(part, Blank):
            packed.append(part.value)
        else:
            one = hiredis.pack_command((part,))
            packed.append(one[one.index(_HEADER_ENDS) + 2 :].replace(b"%", b"%%"))
    return b"".join(packed)
