"""Several workers under load for minutes while everything around them breaks, one fault after the other.

An upstream of the run keeps its own tally of what it served. At the end the books in Redis are held against it: nothing
may be lost or charged twice, to the nano-dollar, and no limit may have been passed. The seed repeats a run's faults and
load as far as time allows. It shares its parts with the tests of tests/faults, so it runs in the repository's root:

    python -m benchmarks.soak                                  # five minutes
    python -m benchmarks.soak --seconds 3600 --json soak.json
    python -m benchmarks.soak --seed 7 --faults kill_redis,partition
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from tests.faults.books import expected_nanos, what_does_not_balance
from tests.faults.calls import CUT
from tests.faults.house import House, house
from tests.faults.load import Load, load

USERS: Mapping[str, dict[str, float]] = MappingProxyType(
    {
        "free": {},
        "rpm": {"rpm_limit": 300},
        "parallel": {"max_parallel_requests": 3},
        "budget": {"max_budget": 0.1},
        "all": {"rpm_limit": 600, "max_parallel_requests": 4, "max_budget": 0.5, "tpm_limit": 100_000},
    }
)
"""The callers' limits. The upstream uses no more than was held, so not even debt may take a budget over its limit."""
LEASE_TTL_S = 10
LONGEST_FAULT_S = 2.5  # shorter than the life of a lease less a heartbeat: what runs keeps its slot
REPORT_EVERY_S = 10.0
_EXPECTED = frozenset({CUT, 200, 429, 503})


@dataclass
class Report:
    """What a run has come to; `lost_nanos` is below 0 where something was charged that nobody used."""

    seed: int
    seconds: float
    workers: int
    answers: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    served: int = 0
    charged_as_held: int = 0
    spent_nanos: int = 0
    lost_nanos: int = 0
    unbalanced: dict[str, list[str]] = field(default_factory=dict)
    limits_passed: dict[str, str] = field(default_factory=dict)
    unexpected_answers: dict[str, int] = field(default_factory=dict)
    findings: list[object] = field(default_factory=list)
    """What `llmweir check --books` finds wrong."""

    @property
    def is_good(self) -> bool:
        """Whether every word was kept."""
        return not any((self.unbalanced, self.limits_passed, self.unexpected_answers, self.findings, self.lost_nanos))


Fault = Callable[[House, random.Random], Awaitable[None]]


async def _kill_worker(built: House, chance: random.Random) -> None:
    worker = chance.choice(built.workers)
    worker.kill()
    await worker.start()


async def _end_worker(built: House, chance: random.Random) -> None:
    worker = chance.choice(built.workers)
    worker.send(signal.SIGTERM)
    await worker.ended()
    await worker.start()


async def _stop_worker(built: House, chance: random.Random) -> None:
    worker = chance.choice(built.workers)
    worker.send(signal.SIGSTOP)
    await _while_it_lasts(chance)
    worker.send(signal.SIGCONT)


async def _kill_redis(built: House, chance: random.Random) -> None:
    built.redis.kill()
    await _while_it_lasts(chance)
    await built.redis.start()


async def _pause_redis(built: House, chance: random.Random) -> None:
    with built.redis.paused():
        await _while_it_lasts(chance)


async def _partition(built: House, chance: random.Random) -> None:
    built.wire.shut(*chance.choice((("there",), ("back",), ("there", "back"))))
    await _while_it_lasts(chance)
    built.wire.open()


async def _strand(built: House, chance: random.Random) -> None:
    built.wire.strand()
    await _while_it_lasts(chance)
    built.wire.open()


async def _reset(built: House, _: random.Random) -> None:
    built.wire.reset()


async def _slow_redis(built: House, chance: random.Random) -> None:
    built.wire.delay_s = chance.choice((0.01, 0.1, 0.4))
    await _while_it_lasts(chance)
    built.wire.delay_s = 0.0


async def _flush_scripts(built: House, _: random.Random) -> None:
    built.client.script_flush()


async def _fill_redis(built: House, chance: random.Random) -> None:
    built.client.config_set("maxmemory", "1")
    await _while_it_lasts(chance)
    built.client.config_set("maxmemory", "0")


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        "kill_worker": _kill_worker,
        "end_worker": _end_worker,
        "stop_worker": _stop_worker,
        "kill_redis": _kill_redis,
        "pause_redis": _pause_redis,
        "partition": _partition,
        "strand": _strand,
        "reset": _reset,
        "slow_redis": _slow_redis,
        "flush_scripts": _flush_scripts,
        "fill_redis": _fill_redis,
    }
)


async def _while_it_lasts(chance: random.Random) -> None:
    await asyncio.sleep(chance.uniform(0.2, LONGEST_FAULT_S))


async def soak(folder: Path, report: Report, names: list[str], callers_each: int) -> None:
    """Runs the load and the faults, and holds the books against the tally."""
    async with house(
        folder, workers=report.workers, lease_ttl_s=LEASE_TTL_S, lease_renew_s=3, store_timeout_ms=500
    ) as built:
        callers = [await built.admin.caller(built.worker, name, **limits) for name, limits in USERS.items()]
        async with load(callers * callers_each, built.workers, seed=report.seed) as running:
            await _break_things(built, running, report, names)
        await built.all_ready()
        report.answers = {"cut" if status == CUT else str(status): n for status, n in sorted(running.statuses.items())}
        report.refusals = dict(running.codes.most_common())
        report.unexpected_answers = {str(s): n for s, n in running.statuses.items() if s not in _EXPECTED}
        report.served = len(built.tally.served)
        for user_id in USERS:
            await _audit(built, user_id, report)
        report.findings = await built.check()


async def _break_things(built: House, running: Load, report: Report, names: list[str]) -> None:
    chance, faults, began_s = random.Random(report.seed), Counter[str](), time.monotonic()
    next_report_s = began_s + REPORT_EVERY_S
    while time.monotonic() - began_s < report.seconds:
        await asyncio.sleep(chance.uniform(0.5, 3.0))
        name = chance.choice(names)
        await FAULTS[name](built, chance)
        faults[name] += 1
        if time.monotonic() > next_report_s:
            next_report_s += REPORT_EVERY_S
            served, statuses = len(built.tally.served), dict(running.statuses)
            print(f"{time.monotonic() - began_s:5.0f} s  faults {faults.total()}  served {served}  answers {statuses}")
    report.faults = dict(faults)


async def _audit(built: House, user_id: str, report: Report) -> None:
    """Waits until the books of a user balance, or ought to, and writes down what they say."""
    try:
        books = await built.balanced(user_id, patience_s=3.0 * LEASE_TTL_S)
    except AssertionError:
        books = built.books(user_id)
        report.unbalanced[user_id] = what_does_not_balance(books, built.tally, user_id)
    report.spent_nanos += books.spent
    report.lost_nanos += expected_nanos(books, built.tally, user_id) - books.spent
    report.charged_as_held += len(books.lapsed)
    reached = {
        "rpm_limit": built.tally.most_in_a_minute(user_id),
        "max_parallel_requests": built.tally.most_in_flight(user_id),
        "max_budget": max(books.spent, built.tally.cost_nanos(user_id)) / 1e9,
    }
    for name, limit in USERS[user_id].items():
        if reached.get(name, 0) > limit:
            report.limits_passed[f"{user_id} {name}"] = f"{reached[name]} of {limit}"


def _print(report: Report) -> None:
    print(f"\n{report.seconds:g} s, {report.workers} workers, seed {report.seed}")
    for name in ("answers", "refusals", "faults"):
        print(f"{name}: " + ", ".join(f"{what} {number}" for what, number in getattr(report, name).items()))
    print(f"served {report.served}, charged as held after a crash {report.charged_as_held}")
    print(
        f"spent {report.spent_nanos / 1e9:.9f} USD, lost {report.lost_nanos} nanos, {len(report.unbalanced)} unbalanced"
    )
    print(f"limits passed: {len(report.limits_passed)}, unexpected answers: {sum(report.unexpected_answers.values())}")
    for what in (report.unbalanced, report.limits_passed, report.unexpected_answers, report.findings):
        if what:
            print(what)


def main() -> int:
    """Runs it; 0 where every word was kept, else 1."""
    parser = argparse.ArgumentParser(description="Break everything, and hold the books against the tally.")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time, printed")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--callers", type=int, default=3, help="tasks that ask on for each of the five users")
    parser.add_argument("--faults", default=",".join(FAULTS), help="default: all of them")
    parser.add_argument("--json", type=Path, default=None, help="writes the report there")
    given = parser.parse_args()
    names = given.faults.split(",")
    if unknown := set(names) - set(FAULTS):
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    report = Report(given.seed if given.seed is not None else secrets.randbelow(10**6), given.seconds, given.workers)
    print(f"seed {report.seed}")
    with tempfile.TemporaryDirectory(prefix="weir-soak-") as folder:
        asyncio.run(soak(Path(folder), report, names, given.callers))
    _print(report)
    if given.json is not None:
        given.json.write_text(json.dumps({**asdict(report), "is_good": report.is_good}, indent=1) + "\n")
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
