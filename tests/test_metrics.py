"""What a worker counts, how Prometheus reads it, and that the docs name all of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from llmweir.metrics import Exposition, Metrics, Moment
from llmweir.usage import Usage

DOCS = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
WORKER = str(os.getpid())
IDLE = Moment(is_store_up=True)


def samples(metrics: Metrics, moment: Moment = IDLE) -> dict[tuple[str, ...], float]:
    """The values a scrape reads, by the name of each and its labels; every one has the worker among these."""
    text = Exposition(metrics, "1.2.3", lambda: moment).text().decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(sample.labels.pop("worker") == WORKER for sample in found)
    return {(sample.name.removeprefix("llmweir_"), *sample.labels.values()): sample.value for sample in found}


def test_a_worker_that_has_done_nothing_tells_so() -> None:
    assert samples(Metrics()) == {
        ("requests_total", "", "admitted"): 0,
        ("tokens_total", "input"): 0,
        ("tokens_total", "output"): 0,
        ("cost_usd_total",): 0,
        ("requests_failed_total",): 0,
        ("soft_budgets_crossed_total",): 0,
        ("requests_let_through_total",): 0,
        ("leases_expired_total",): 0,
        ("outbox_records",): 0,
        ("outbox_bytes",): 0,
        ("outbox_set_aside_total",): 0,
        ("outbox_failed_writes_total",): 0,
        ("in_flight",): 0,
        ("store_up",): 1,
        ("build_info", "1.2.3"): 1,
    }


def test_what_was_counted_is_told_to_the_last_nano_dollar() -> None:
    metrics = Metrics()
    metrics.count_admitted(Usage(input_tokens=20, output_tokens=30), 1_234_567_891)
    metrics.count_admitted(Usage(input_tokens=1, output_tokens=2), 1)
    for code in ("rate_limit_exceeded", "invalid_api_key", "rate_limit_exceeded"):
        metrics.count_refused(code)
    metrics.failed += 1
    metrics.soft_budgets_crossed += 4
    metrics.let_through += 5
    metrics.leases_expired += 6
    told = samples(metrics)
    assert {name: value for name, value in told.items() if value and name[0] not in ("build_info", "store_up")} == {
        ("requests_total", "", "admitted"): 2,
        ("requests_total", "rate_limit_exceeded", "refused"): 2,
        ("requests_total", "invalid_api_key", "refused"): 1,
        ("tokens_total", "input"): 21,
        ("tokens_total", "output"): 32,
        ("cost_usd_total",): 1.234567892,
        ("requests_failed_total",): 1,
        ("soft_budgets_crossed_total",): 4,
        ("requests_let_through_total",): 5,
        ("leases_expired_total",): 6,
    }


def test_how_a_worker_stands_is_looked_at_by_each_scrape() -> None:
    moments = [IDLE, Moment(in_flight=3, outbox_records=2, outbox_bytes=9)]
    exposition = Exposition(Metrics(), "1", lambda: moments[0])
    assert "llmweir_store_up" in exposition.text().decode()
    moments.pop(0)
    text = exposition.text().decode()
    for line in (
        "llmweir_in_flight{%s} 3.0",
        "llmweir_outbox_records{%s} 2.0",
        "llmweir_outbox_bytes{%s} 9.0",
        "llmweir_store_up{%s} 0.0",
    ):
        assert line % f'worker="{WORKER}"' in text.splitlines()


def test_two_apps_in_one_process_share_no_numbers() -> None:
    first, second = Metrics(), Metrics()
    first.count_refused("invalid_api_key")
    assert ("requests_total", "invalid_api_key", "refused") not in samples(second)
    assert [family.name for family in REGISTRY.collect() if family.name.startswith("llmweir")] == []


def test_the_docs_name_every_metric_with_its_type_labels_and_meaning_and_no_other() -> None:
    table = re.findall(r"^\| `llmweir_.*$", DOCS, re.MULTILINE)
    rows = [[cell.strip() for cell in row.split("|")[1:5]] for row in table]
    metrics = Metrics()
    metrics.count_refused("invalid_api_key")
    told = []
    for family in Exposition(metrics, "1", lambda: IDLE).registry.collect():
        labels = ", ".join(f"`{name}`" for name in family.samples[0].labels if name != "worker")
        told.append([f"`{family.samples[0].name}`", family.type, labels, family.documentation])
    assert rows == told
