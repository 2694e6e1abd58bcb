"""Loads the Lua scripts: one command a file, helpers pulled in by `--- @include name`.

A script's header names every KEYS and ARGV with its unit, and every reply. An include is pulled in once, before the
code that asks for it, and may itself include others; an indented one belongs to its block alone, so that what is rare
costs nothing elsewhere. `SUFFIX.name` becomes the text `keys.SUFFIXES` has by that name, and `LAYOUT.name` that of
`LAYOUTS`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

import msgspec

from llmweir.engine.keys import SUFFIXES

LAYOUTS: Mapping[str, str] = MappingProxyType(
    {
        "account": "<i8i4i4i8i8i4i8i8i4i8",
        "model": "<i8i4i4i4i8i8i8",
        "lease": "<i8i8i8i8i4ss",
        "lease_row": "<i1i4s",
        "expiry": "<i8",
        "line": "<i8i8i8i8s",
        "record": "<i8i8i8i8sss",
    }
)
"""How values made of several numbers and names are packed, in the words of Lua's `struct`.

Texts take five times as long to read. An account has 64 bytes, the most that a compact hash takes.
"""

_INCLUDE = re.compile(r"^( *)--- @include (\w+)$", re.MULTILINE)
_LOCALS = """\
local KEYS, ARGV = KEYS, ARGV
local call, floor, match, format, byte = redis.call, math.floor, string.match, string.format, string.byte
local pack, unpack_from = struct.pack, struct.unpack"""
_NAMED = re.compile(r"\b(SUFFIX|LAYOUT)\.(\w+)")
_NAMES = {"SUFFIX": SUFFIXES, "LAYOUT": LAYOUTS}
_FOLDER = resources.files("llmweir.engine") / "lua"


class Script(msgspec.Struct, frozen=True):
    """A script as the server gets it: `source` whole, `sha` as EVALSHA names it."""

    name: str
    source: str
    sha: bytes


@cache
def load(name: str) -> Script:
    """Reads a command of the `lua` folder and resolves its includes."""
    source = _source(f"{name}.lua", seen=set())
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest().encode())


def load_include(name: str) -> str:
    """Reads a helper with what it includes itself, as source that ends in its function (for tests)."""
    return _source(f"include/{name}.lua", seen={name})


def _source(path: str, seen: set[str]) -> str:
    body = _NAMED.sub(lambda match: f"'{_NAMES[match[1]][match[2]]}'", _resolved(path, seen))
    return f"{_LOCALS}\n{body}"


def _resolved(path: str, seen: set[str]) -> str:
    def included(match: re.Match[str]) -> str:
        indentation, name = match.groups()
        if name in seen:
            return ""
        visible = set(seen) if indentation else seen
        visible.add(name)
        return _resolved(f"include/{name}.lua", visible)

    return _INCLUDE.sub(included, _FOLDER.joinpath(path).read_text())
