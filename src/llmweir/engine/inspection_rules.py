"""What a Redis must be like to keep books, judged from what it says of itself: plain values in, remarks out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

Verdict: TypeAlias = Literal["ok", "warning", "error", "unknown"]

OLDEST_REDIS = (6, 2)
_NOT_ALLOWED = "not allowed to look"
_LARGEST_SKEW_MS = 1_000
_EMPTY: Mapping[str, str] = {}


class Remark(msgspec.Struct, frozen=True):
    """One thing that was looked at: `text` says in a sentence how it is; "unknown": we were not allowed to look."""

    name: str
    verdict: Verdict
    text: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What Redis says of itself; None for what it did not let us see.

    `info` are the lines of INFO, `config` those parameters that CONFIG GET gives. `skew_ms` is how far its clock is
    ahead of this machine's, more or less the time that asking took.
    """

    info: Mapping[str, str] | None = None
    config: Mapping[str, str] | None = None
    skew_ms: int | None = None


def remarks_of(facts: Facts) -> list[Remark]:
    """Judges everything there is to say of a Redis, in the order of a report."""
    return [version_of(facts), role_of(facts), persistence_of(facts), eviction_of(facts), clock_of(facts)]


def version_of(facts: Facts) -> Remark:
    """Redis 6.2 or newer, or any Valkey."""
    if facts.info is None:
        return Remark("version", "unknown", f"Its version: {_NOT_ALLOWED} (INFO).")
    valkey, redis = facts.info.get("valkey_version"), facts.info.get("redis_version", "")
    if valkey is not None:
        return Remark("version", "ok", f"Valkey {valkey}.")
    numbers = re.match(r"(\d+)\.(\d+)", redis)
    if numbers is None:
        return Remark("version", "unknown", "It does not say which version it is.")
    if (int(numbers[1]), int(numbers[2])) < OLDEST_REDIS:
        return Remark("version", "error", f"Redis {redis}: 6.2 or newer is needed, or Valkey.")
    return Remark("version", "ok", f"Redis {redis}.")


def role_of(facts: Facts) -> Remark:
    """A master: a replica takes no writes, or writes that are lost with its next synchronisation."""
    if facts.info is None:
        return Remark("role", "unknown", f"Its role: {_NOT_ALLOWED} (INFO).")
    if facts.info.get("role") == "slave":
        return Remark("role", "error", "It is a replica; redis_url should name its master.")
    replicas = facts.info.get("connected_slaves", "0")
    return Remark("role", "ok", f"A master; connected replicas: {replicas}.")


def persistence_of(facts: Facts) -> Remark:
    """What a crash of the server or of its machine may lose."""
    if facts.info is None:
        return Remark("persistence", "unknown", f"What a crash may lose: {_NOT_ALLOWED} (INFO).")
    if facts.info.get("aof_enabled") == "1":
        return _append_only_file(facts.info, facts.config)
    if facts.config is None or "save" not in facts.config:
        return Remark(
            "persistence",
            "warning",
            f"There is no append-only file: a crash may lose minutes. Snapshots: {_NOT_ALLOWED} (CONFIG GET).",
        )
    if not facts.config["save"]:
        return Remark(
            "persistence",
            "warning",
            "NOTHING IS KEPT: a restart of Redis loses all users, keys, limits and books. Set appendonly yes.",
        )
    failed = " The last snapshot failed." if facts.info.get("rdb_last_bgsave_status", "ok") != "ok" else ""
    return Remark(
        "persistence",
        "warning",
        f"Snapshots alone (save {facts.config['save']}): a crash may lose all since the last one, users and keys "
        f"among it.{failed} Set appendonly yes.",
    )


def _append_only_file(info: Mapping[str, str], config: Mapping[str, str] | None) -> Remark:
    if info.get("aof_last_write_status", "ok") != "ok":
        return Remark("persistence", "error", "The append-only file cannot be written; look at the disk of Redis.")
    match (config or _EMPTY).get("appendfsync"):
        case "always":
            return Remark("persistence", "ok", "Append-only file, written through: a crash loses nothing.")
        case "everysec":
            text = "Append-only file, written through every second: a crash of the machine may lose about a second."
            return Remark("persistence", "ok", text)
        case "no":
            text = "Append-only file, written through at some time: a crash of the machine may lose half a minute."
            return Remark("persistence", "warning", text)
        case _:
            return Remark("persistence", "ok", f"Append-only file; how often it is written through: {_NOT_ALLOWED}.")


def eviction_of(facts: Facts) -> Remark:
    """Nothing may be thrown out when memory is short: it would be limits, spend, or users."""
    if facts.info is None or "maxmemory_policy" not in facts.info:
        return Remark("eviction", "unknown", f"What happens when memory is full: {_NOT_ALLOWED} (INFO).")
    policy, limit = facts.info["maxmemory_policy"], facts.info.get("maxmemory", "0")
    if policy == "noeviction":
        return Remark("eviction", "ok", "maxmemory-policy noeviction: nothing is thrown out.")
    if limit == "0":
        return Remark("eviction", "ok", f"No maxmemory, so nothing is thrown out (maxmemory-policy {policy}).")
    what = "days, windows and memos" if policy.startswith("volatile") else "users, keys, limits and books"
    return Remark(
        "eviction",
        "warning",
        f"maxmemory-policy {policy}: when memory is full, {what} are thrown out. Set it to noeviction.",
    )


def clock_of(facts: Facts) -> Remark:
    """Redis' clock decides when keys expire and periods end; what is shown beside it comes from this machine's."""
    if facts.skew_ms is None:
        return Remark("clock", "unknown", f"Its clock: {_NOT_ALLOWED} (TIME).")
    ahead, seconds = facts.skew_ms > 0, abs(facts.skew_ms) / 1000
    if abs(facts.skew_ms) <= _LARGEST_SKEW_MS:
        return Remark("clock", "ok", "Redis and this machine agree about the time.")
    text = f"The clock of Redis is {seconds:.1f} s {'ahead of' if ahead else 'behind'} this machine's."
    return Remark("clock", "warning", text)
