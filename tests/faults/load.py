"""Load: callers that ask one after the other, over all workers, until they are told to stop.

No answer uses more than was held for it, so that no budget may be passed by as much as a nano-dollar.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from tests.faults.calls import Caller
from tests.faults.upstream import Play
from tests.faults.waiting import until
from tests.faults.workers import Worker

_PAUSE_S = 0.02
MOST_OUTPUT_TOKENS = 64


class Load:
    """What the callers have heard so far: how often each status, and each code of a refusal."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.statuses: Counter[int] = Counter()
        self.codes: Counter[str] = Counter()
        self.goes = True

    async def goes_on(self, status: int = 200, *, times: int = 10) -> None:
        """Waits until so many more answers have this status."""
        target = self.statuses[status] + times
        await until(lambda: self.statuses[status] >= target, f"{times} more answers with {status}: {self.statuses}")

    async def ask_on(self, caller: Caller, workers: Sequence[Worker]) -> None:
        """Asks for one answer after the other, plain and streamed, of many sizes."""
        while self.goes:
            chance = self.chance
            play = Play(chance.randint(1, 4), chance.random() * 0.03, 1, chance.randint(0, MOST_OUTPUT_TOKENS))
            worker, stream = chance.choice(workers), chance.random() < 0.4
            heard = await caller.chat(worker, play, stream=stream, max_tokens=MOST_OUTPUT_TOKENS)
            self.statuses[heard.status] += 1
            if heard.code:
                self.codes[heard.code] += 1
            await asyncio.sleep(_PAUSE_S)


@contextlib.asynccontextmanager
async def load(callers: Sequence[Caller], workers: Sequence[Worker], *, seed: int = 1) -> AsyncIterator[Load]:
    """Has each of the callers ask on; at the end all of them have heard their last answer."""
    running = Load(seed)
    asking = [asyncio.create_task(running.ask_on(caller, workers)) for caller in callers]
    try:
        yield running
    finally:
        running.goes = False
        await asyncio.gather(*asking)
