"""Loads the Lua scripts: one command a file, helpers pulled in by `--- @include name`.

A script's header names every KEYS and ARGV with its unit, and every reply. An include is pulled in once, before the
code that asks for it, and may itself include others.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources

import msgspec

from llmweir.engine.keys import SUFFIXES

_INCLUDE = re.compile(r"^ *--- @include (\w+)$", re.MULTILINE)
_FOLDER = resources.files("llmweir.engine") / "lua"


class Script(msgspec.Struct, frozen=True):
    """A script as the server gets it: `source` whole, `sha` as EVALSHA names it."""

    name: str
    source: str
    sha: bytes


@cache
def load(name: str) -> Script:
    """Reads a command of the `lua` folder and resolves its includes."""
    suffixes = ", ".join(f"{key} = '{suffix}'" for key, suffix in SUFFIXES.items())
    body = _resolved((_FOLDER / f"{name}.lua").read_text(), seen=set())
    source = f"local SUFFIX, call, floor = {{ {suffixes} }}, redis.call, math.floor\n{body}"
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest().encode())


def _resolved(text: str, seen: set[str]) -> str:
    def included(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return ""
        seen.add(name)
        return _resolved((_FOLDER / "include" / f"{name}.lua").read_text(), seen)

    return _INCLUDE.sub(included, text)
