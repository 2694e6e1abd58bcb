"""How records, keys and limits look to people, within 80 columns: amounts in USD, '-' where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from llmweir.cli.plain_text import printable, usd

Row: TypeAlias = Mapping[str, Any]
MONEY = frozenset({"max_budget", "soft_budget", "spend", "reserved", "model_max_budget", "model_spend"})
_USER_FIELDS = (
    "user_email", "user_alias", "user_role", "teams", "blocked", "models", "rpm_limit", "tpm_limit",
    "max_parallel_requests", "max_budget", "budget_duration", "spend", "reserved", "budget_reset_at", "soft_budget",
)  # fmt: skip
_KEY_FIELDS = (
    "key_alias", "user_id", "blocked", "models", "rpm_limit", "tpm_limit", "max_parallel_requests", "max_budget",
    "budget_duration", "spend", "expires",
)  # fmt: skip
_MINTED = frozenset({"key", "key_name", "token_id", "expires"})


def user_panel(row: Row) -> Panel:
    """A user's record: what everyone looks for, then whatever else is set."""
    rest = [name for name in row if name not in {"user_id", *_USER_FIELDS, *_MINTED}]
    return _panel(str(row.get("user_id", "")), row, _USER_FIELDS, rest)


def key_panel(row: Row) -> list[RenderableType]:
    """A key's row and below it the hash that names the key, whole; never the key itself."""
    rest = [name for name in row if name not in {"key", "key_name", "token_id", "token", *_KEY_FIELDS}]
    return [_panel(str(row.get("key_name") or ""), row, _KEY_FIELDS, rest), _hash_line(row)]


def minted_lines(answer: Row) -> list[RenderableType]:
    """The key that a call has made, on a line of its own, so that it can be copied whole."""
    if not answer.get("key"):
        return []
    return ["The API key, shown this once:", printable(str(answer["key"]))]


def user_table(rows: Iterable[Row], *, has_head: bool = True) -> Table:
    """Users, one a row; tables of the same width line up, whatever is in them."""
    table = _list_table("user", has_head=has_head)
    for row in rows:
        names = [*_labelled(row, "user_alias", "alias: "), *_labelled(row, "user_email", "")]
        _add_listed(table, str(row.get("user_id", "")), names, row)
    return table


def key_table(rows: Iterable[Row], *, has_head: bool = True) -> list[RenderableType]:
    """Keys: a row each, and the hash that names the key, whole, on the line below it."""
    parts: list[RenderableType] = []
    for row in rows:
        table = _list_table("key", has_head=has_head and not parts)
        names = [*_labelled(row, "key_alias", "alias: "), *_labelled(row, "user_id", "user: ")]
        _add_listed(table, str(row.get("key_name", "")), names, row)
        parts += [table, _hash_line(row)]
    return parts


def usage_table(limits: Iterable[Row]) -> Table:
    """Limits as they stand now, those of money in USD."""
    table = Table(box=None, pad_edge=False)
    table.add_column("limit", no_wrap=True)
    table.add_column("model", overflow="fold")
    for head in ("used", "held", "of", "left", "empty in"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in limits:
        name = str(row.get("name", ""))
        is_money = name.endswith("budget")
        numbers = [_number(row.get(part), is_money=is_money) for part in ("used", "reserved", "limit", "remaining")]
        reset_ms = row.get("reset_ms")
        wait = "-" if reset_ms is None else _span(int(reset_ms))
        full = "full" if row.get("remaining") == 0 and name != "soft_budget" else ""
        whose = f" (key {str(row['key'])[:8]}...)" if row.get("key") else ""
        cells = [
            f"{name} USD{whose}" if is_money else f"{name}{whose}",
            str(row.get("model") or "-"),
            *numbers,
            wait,
            full,
        ]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _span(ms: int) -> str:
    """A time as people read it, by its two largest units: "29d 23h", "59s", "0s"."""
    rest_s = -(-ms // 1000)
    parts = []
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest_s = divmod(rest_s, seconds)
        parts += [f"{count}{unit}"] if count else []
    return " ".join(parts[:2]) or "0s"


def _hash_line(row: Row) -> Text:
    return Text(f"  {printable(str(row.get('token') or row.get('token_id') or '-'))}", style="dim")


def _labelled(row: Row, name: str, label: str) -> list[str]:
    return [f"{label}{row[name]}"] if row.get(name) else []


def _panel(title: str, row: Row, always: Iterable[str], rest: Iterable[str]) -> Panel:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name in always:
        grid.add_row(Text(printable(name)), _value(name, row.get(name)))
    for name in rest:
        if row[name] not in (None, [], {}, ""):
            grid.add_row(Text(printable(name)), _value(name, row[name]))
    return Panel(grid, title=Text(printable(title)), title_align="left")


def _value(name: str, value: object) -> Text:
    if name == "blocked":
        return Text("yes", style="bold red") if value else Text("no")
    if name == "models" and not value:
        return Text("all")
    return Text("\n".join(map(printable, _lines(name, value))) or "-")


def _lines(name: str, value: object) -> list[str]:
    """A value in words: a list in one line, a dict in one line an entry."""
    if isinstance(value, dict):
        return [f"{entry}: {_word(name, worth)}" for entry, worth in value.items()]
    if isinstance(value, list):
        return [", ".join(_word(name, each) for each in value)] if value else []
    return [] if value in (None, "") else [_word(name, value)]


def _word(name: str, value: object) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return usd(value) if name in MONEY and isinstance(value, int | float) else str(value)


def _number(value: object, *, is_money: bool) -> str:
    if not isinstance(value, int | float):
        return "-"
    return usd(value).removesuffix(" USD") if is_money else str(value)


def _list_table(first: str, *, has_head: bool) -> Table:
    table = Table(box=None, show_header=has_head, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, ratio=1, overflow="fold")
    for head, width in (("rpm", 7), ("tpm", 9), ("slots", 5), ("spent USD", 10), ("of USD", 10)):
        table.add_column(head, width=width, justify="right", overflow="fold")
    table.add_column("state", width=7)
    return table


def _add_listed(table: Table, title: str, names: Iterable[str], row: Row) -> None:
    who = Text(printable(title), style="bold")
    for name in names:
        who.append(f"\n{printable(name)}", style="dim")
    limits = [_number(row.get(name), is_money=False) for name in ("rpm_limit", "tpm_limit", "max_parallel_requests")]
    money = [_number(row.get(name), is_money=True) for name in ("spend", "max_budget")]
    table.add_row(who, *(Text(cell) for cell in limits + money), _state(row))


def _state(row: Row) -> Text:
    if row.get("blocked"):
        return Text("blocked", style="bold red")
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")  # compares as text, but for its Z
    if row.get("expires") and str(row["expires"]) <= now:
        return Text("expired", style="yellow")
    return Text("active", style="green")
