"""Whether a Redis lets us do all that the engine does: load scripts, pack numbers, run every command on its keys."""

from __future__ import annotations

import asyncio
import hashlib
import re
from importlib import resources
from typing import Final

from llmweir.engine import keys, scripts
from llmweir.engine.any_link import AnyLink, Argument
from llmweir.engine.inspection_rules import Remark
from llmweir.engine.wire import Reply, ReplyError

SCRIPT_COMMANDS: Final = (
    "EXISTS 1", "HSET 1 f 1", "HSETNX 1 f 1", "HINCRBY 1 f 1", "HGET 1 f", "HMGET 1 f", "HGETALL 1", "HKEYS 1",
    "HLEN 1", "HEXISTS 1 f", "HDEL 1 f", "SET 2 v PX 1000", "GET 2", "PEXPIRE 2 1000", "ZADD 3 1 m", "ZSCORE 3 m",
    "ZREM 3 m", "DEL 2", "TIME",
)  # fmt: skip
"""Every command of the scripts, with the number of a probe key."""

COMMANDS: Final = (
    "GET 2", "SET 2 v NX PX 1", "DEL 2", "HGET 1 f", "HMGET 1 f", "HGETALL 1", "HEXISTS 1 f", "ZCARD 3", "ZSCORE 3 m",
    "ZRANGE 3 0 0", "ZREVRANGE 3 0 0",
)  # fmt: skip
"""Every command that `serve` sends by itself. What is set is gone at once: a probe leaves nothing behind."""

# Tries each command (ARGV: lines), and takes back what it wrote; the reply is what was refused, line by line.
_PROBE = """
local refused = {}
for _, line in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(line, '%S+') do words[#words + 1] = word end
  if words[2] then words[2] = KEYS[tonumber(words[2])] end
  local reply = redis.pcall(unpack(words))
  if type(reply) == 'table' and reply.err then refused[#refused + 1] = words[1] .. ': ' .. reply.err end
end
redis.pcall('DEL', KEYS[1], KEYS[2], KEYS[3])
return refused
"""
_PACKS = "return struct.unpack('<i8i4s', struct.pack('<i8i4s', ARGV[1], 7, 'x'))"
_REFUSED = ("NOPERM", "ACL failure", "can't run this command", "no permission", "unknown command")


def script_names() -> list[str]:
    """Every command script of the engine."""
    folder = resources.files("llmweir.engine") / "lua"
    return sorted(path.name.removesuffix(".lua") for path in folder.iterdir() if path.name.endswith(".lua"))


async def try_rights(link: AnyLink) -> list[Remark]:
    """Remarks on the scripts, the library that packs numbers, and the commands. Raises StoreUnavailableError."""
    return [await _scripts(link), await _struct(link), await _rights(link)]


async def _scripts(link: AnyLink) -> Remark:
    names = script_names()
    try:
        await asyncio.gather(*(link.call(b"SCRIPT", b"LOAD", scripts.load(name).source) for name in names))
    except ReplyError as error:
        return Remark("scripts", "error", f"A script cannot be loaded: {_said(error)}")
    return Remark("scripts", "ok", f"All {len(names)} scripts load.")


async def _struct(link: AnyLink) -> Remark:
    try:
        packed = await _run(link, _PACKS, 1, _probe_keys()[0], 2**53 - 1)
    except ReplyError as error:
        if any(word in str(error) for word in _REFUSED):
            return Remark("struct", "unknown", "Lua's struct library: not allowed to look.")
        return Remark("struct", "error", f"Lua's struct library is needed, and does not work here: {_said(error)}")
    if packed != 2**53 - 1:
        return Remark("struct", "error", "Lua's struct library packs numbers wrongly here.")
    return Remark("struct", "ok", "Lua's struct library is there.")


async def _rights(link: AnyLink) -> Remark:
    try:
        in_scripts = await _run(link, _PROBE, 3, *_probe_keys(), *SCRIPT_COMMANDS)
    except ReplyError as error:
        return Remark("rights", "error", f"Scripts cannot be run on keys that begin with lw: - {_said(error)}")
    replies = await asyncio.gather(*(link.call(*_spelled(line)) for line in COMMANDS), return_exceptions=True)
    refused = [_text(line) for line in in_scripts] if isinstance(in_scripts, list) else []
    for line, reply in zip(COMMANDS, replies, strict=True):
        if isinstance(reply, ReplyError):
            refused.append(f"{line.partition(' ')[0]}: {reply}")
        elif isinstance(reply, BaseException):
            raise reply
    denied = sorted({line.partition(":")[0] for line in refused if any(word in line for word in _REFUSED)})
    others = sorted({line for line in refused if not any(word in line for word in _REFUSED)})
    if denied:
        text = f"The user of redis_url may not run {', '.join(denied)} on keys that begin with lw: (see ACL SETUSER)."
        return Remark("rights", "error", text)
    if others:
        return Remark("rights", "error", f"Redis does not do what it is told: {_plain(others[0])}")
    return Remark("rights", "ok", "All commands are allowed, and writes are taken.")


async def _run(link: AnyLink, source: str, *arguments: Argument) -> Reply:
    """Runs Lua as the hot path does: a user with the least rights may not EVAL."""
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    await link.call(b"SCRIPT", b"LOAD", source)
    return await link.call(b"EVALSHA", sha, *arguments)


def _probe_keys() -> tuple[bytes, bytes, bytes]:
    """Three keys of one slot that nothing else has."""
    probe = keys.catalogue("check")
    return probe.rows, probe.base, probe.writing


def _spelled(line: str) -> list[str | bytes]:
    """A command of `COMMANDS` with its key."""
    name, *rest = line.split()
    if name == "SCAN":
        return [name, *rest]
    return [name, _probe_keys()[int(rest[0]) - 1], *rest[1:]]


def _said(error: ReplyError) -> str:
    return _plain(str(error))


def _plain(text: str) -> str:
    """What Redis said, without the script it quotes."""
    return re.sub(r",? ?(script: [0-9a-f]{40}|call to f_[0-9a-f]{40}|@?user_script:\d+:?).*$", "", text).strip()


def _text(reply: Reply) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)
