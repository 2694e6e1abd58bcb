"""What one worker counts, and how Prometheus is told: plain numbers on the request's way, made into metrics when asked.

A worker counts for itself alone, from its start on: every sample bears its process id as `worker`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from llmweir.usage import Usage

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""The media type of what `Exposition.text` gives."""

_NANOS_PER_USD = 1_000_000_000


class Metrics:
    """The counters of one worker. They are counted up by hand, for every request pays for it."""

    __slots__ = (
        "admitted", "cost_nanos", "failed", "input_tokens", "leases_expired", "let_through", "output_tokens", "refused",
        "soft_budgets_crossed",
    )  # fmt: skip

    def __init__(self) -> None:
        self.admitted = 0
        self.failed = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.cost_nanos = 0
        self.soft_budgets_crossed = 0
        self.let_through = 0
        self.leases_expired = 0
        self.refused: dict[str, int] = {}
        """By the refusal's code; there is a fixed set of them."""

    def count_admitted(self, usage: Usage, cost_nanos: int) -> None:
        """Counts a request that was admitted and is over, with what it used."""
        self.admitted += 1
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cost_nanos += cost_nanos

    def count_refused(self, code: str) -> None:
        """Counts a request that the gate refused."""
        self.refused[code] = self.refused.get(code, 0) + 1


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker stands right now."""

    in_flight: int = 0
    is_store_up: bool = False
    outbox_records: int = 0
    outbox_bytes: int = 0
    outbox_set_aside: int = 0
    outbox_failed_writes: int = 0


class Exposition:
    """The metrics of one worker in Prometheus' text format; `look` says how the worker stands when it is asked."""

    def __init__(self, metrics: Metrics, version: str, look: Callable[[], Moment]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_WorkerCollector(metrics, version, look))

    def text(self) -> bytes:
        """All metrics as they are now."""
        return generate_latest(self.registry)


class _WorkerCollector(Collector):
    def __init__(self, metrics: Metrics, version: str, look: Callable[[], Moment]) -> None:
        self._metrics = metrics
        self._version = version
        self._look = look

    def describe(self) -> Iterator[Metric]:
        """Names the metrics without a look at the worker, which may not have started."""
        yield from _families(Metrics(), Moment(), self._version)

    def collect(self) -> Iterator[Metric]:
        yield from _families(self._metrics, self._look(), self._version)


def _families(metrics: Metrics, moment: Moment, version: str) -> Iterator[Metric]:
    worker = str(os.getpid())  # asked for here, because a server may fork after the app is made
    yield _requests(metrics, worker)
    tokens = {"input": metrics.input_tokens, "output": metrics.output_tokens}
    yield _counter("tokens", "Tokens used, by kind.", worker, tokens, "kind")
    cost_usd = metrics.cost_nanos / _NANOS_PER_USD
    yield _counter("cost_usd", "What requests cost, in USD.", worker, {"": cost_usd})
    yield _counter(
        "requests_failed",
        "Admitted requests that were answered with an error, or not at all.",
        worker,
        {"": metrics.failed},
    )
    crossed = metrics.soft_budgets_crossed
    yield _counter("soft_budgets_crossed", "Soft budgets crossed.", worker, {"": crossed})
    let_through = metrics.let_through
    yield _counter("requests_let_through", "Requests let through while Redis was away.", worker, {"": let_through})
    expired = metrics.leases_expired
    yield _counter("leases_expired", "Requests charged as held: their worker was gone.", worker, {"": expired})
    yield from _outbox(moment, worker)
    yield _gauge("in_flight", "Admitted requests that are not over yet.", worker, moment.in_flight)
    yield _gauge("store_up", "Whether Redis answers: 1 or 0.", worker, int(moment.is_store_up))
    build = GaugeMetricFamily("llmweir_build_info", "The version that runs; always 1.", labels=["version", "worker"])
    build.add_metric([version, worker], 1)
    yield build


def _outbox(moment: Moment, worker: str) -> Iterator[Metric]:
    yield _gauge("outbox_records", "Settlements that wait in the outbox for Redis.", worker, moment.outbox_records)
    yield _gauge("outbox_bytes", "Size of this worker's files of the outbox.", worker, moment.outbox_bytes)
    set_aside = moment.outbox_set_aside
    yield _counter(
        "outbox_set_aside", "Settlements set aside: damaged, too old, or refused by Redis.", worker, {"": set_aside}
    )
    failed = moment.outbox_failed_writes
    yield _counter(
        "outbox_failed_writes", "Times that the disk did not take what the outbox wrote.", worker, {"": failed}
    )


def _requests(metrics: Metrics, worker: str) -> Metric:
    help_text = "Requests that the gate decided on, by outcome and the code of the refusal."
    family = CounterMetricFamily("llmweir_requests", help_text, labels=["outcome", "code", "worker"])
    family.add_metric(["admitted", "", worker], metrics.admitted)
    for code, requests in metrics.refused.items():
        family.add_metric(["refused", code, worker], requests)
    return family


def _counter(name: str, help_text: str, worker: str, values: Mapping[str, float], label: str | None = None) -> Metric:
    """A counter with one sample for each value of its label, or with the one sample under ""."""
    family = CounterMetricFamily(f"llmweir_{name}", help_text, labels=[label, "worker"] if label else ["worker"])
    for value, count in values.items():
        family.add_metric([value, worker] if label else [worker], count)
    return family


def _gauge(name: str, help_text: str, worker: str, value: int) -> Metric:
    family = GaugeMetricFamily(f"llmweir_{name}", help_text, labels=["worker"])
    family.add_metric([worker], value)
    return family
