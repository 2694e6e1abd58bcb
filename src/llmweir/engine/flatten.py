"""Turns what a request body changes of a record into the changes that `write.lua` carries out.

The admission script reads limits by name, so each lies in a field of its own: scalars under two letters, per-model
limits under a family's letter and the model ('r:gpt-4o'), and `write.lua` packs what the admission script reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from llmweir import durations
from llmweir.records import NO_MODELS, UserFields, stored_fields

Change = tuple[str, str, str | int]
"""What, name, value: one step of `write.lua`."""

_SCALARS = {"rpm_limit": "rl", "tpm_limit": "tl", "max_parallel_requests": "pl"}
_NOT_ON_THE_DATA_PLANE = frozenset({"internal_user_viewer"})


def changes_of(body: UserFields) -> list[Change]:
    """Spells all changes that a body makes to a record, in the order they are carried out."""
    return [*_document(body), *_limits(body), *_families(body), *_account(body)]


def _document(body: UserFields) -> Iterator[Change]:
    for name, text in stored_fields(body).items():
        yield ("undoc", name, "") if text is None else ("doc", name, text)


def _limits(body: UserFields) -> Iterator[Change]:
    sent = body.model_fields_set
    for name, field in _SCALARS.items():
        if name in sent:
            yield _scalar(field, getattr(body, name))
    if "max_budget" in sent:
        yield _scalar("b", body.max_budget_nanos)
    if "blocked" in sent:
        yield _scalar("bl", 1 if body.blocked else None)
    if "user_role" in sent:
        yield _scalar("nd", 1 if body.user_role in _NOT_ON_THE_DATA_PLANE else None)


def _families(body: UserFields) -> Iterator[Change]:
    sent = body.model_fields_set
    if "models" in sent:
        allowed = body.models or []
        yield _scalar("ml", 1 if allowed else None)
        yield from _family("m:", "wm", {model: 1 for model in allowed if model != NO_MODELS})
    if "aliases" in sent:
        yield from _family("a:", None, body.aliases or {})
    if "allowed_cache_controls" in sent:
        controls = body.allowed_cache_controls or []
        yield _scalar("cc", 1 if controls else None)
        yield from _family("c:", None, dict.fromkeys(controls, 1))
    if "model_rpm_limit" in sent:
        yield from _family("r:", None, body.model_rpm_limit or {})
    if "model_tpm_limit" in sent:
        yield from _family("t:", None, body.model_tpm_limit or {})
    if "model_max_budget" in sent:
        budgets = body.model_budgets
        yield "family", "b:", ""
        for entry, budget in budgets.items():
            own = f" {durations.encode(budget.duration)}" if budget.duration is not None else ""
            yield "model_budget", entry, f"{budget.limit_nanos}{own}"


def _account(body: UserFields) -> Iterator[Change]:
    sent = body.model_fields_set
    if "budget_duration" in sent:
        yield "period", "", durations.encode(body.budget_period) if body.budget_period is not None else ""
    if "soft_budget" in sent:
        soft_budget = body.soft_budget_nanos
        yield ("unuse", "sb", "") if soft_budget is None else ("use", "sb", soft_budget)
        yield "unuse", "sm", ""
    if body.spend_nanos is not None:
        yield "spend", "", body.spend_nanos


def _scalar(field: str, value: str | int | None) -> Change:
    return ("unset", field, "") if value is None else ("set", field, value)


def _family(prefix: str, widths: str | None, entries: Mapping[str, str | int]) -> Iterator[Change]:
    yield "family", prefix, ""
    if widths is not None:
        yield _scalar(widths, _prefix_widths(entries))
    for name, value in entries.items():
        yield "set", prefix + name, value


def _prefix_widths(entries: Iterable[str]) -> str | None:
    """The lengths in bytes of the prefixes among `entries`, longest first, as Lua counts them."""
    widths = {len(entry[:-1].encode()) for entry in entries if entry.endswith("*")}
    return ",".join(map(str, sorted(widths, reverse=True))) or None
