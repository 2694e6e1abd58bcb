"""How a check looks: a table for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmweir.cli.plain_text import counted, printable
from llmweir.engine.books import Audit
from llmweir.engine.books_rules import Finding
from llmweir.engine.inspection_rules import Remark

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "unknown": "dim"}
_MOST_SHOWN = 50


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was looked at; `repaired`: what was in no list is filed again."""

    remarks: tuple[Remark, ...]
    audit: Audit | None = None
    is_strict: bool = False
    repaired: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings are no wrong."""
        books = self.audit is None or (self.audit.exact if self.is_strict else self.audit.balanced)
        return books and all(remark.verdict != "error" for remark in self.remarks)

    def as_json(self) -> str:
        """One document: `ok`, `checks`, and `books` where they were audited."""
        told: dict[str, object] = {"ok": self.ok, "checks": self.remarks}
        if self.audit is not None:
            told["books"] = {"balanced": self.audit.balanced, "repaired": self.repaired} | msgspec.structs.asdict(
                self.audit
            )
        return msgspec.json.format(msgspec.json.encode(told), indent=2).decode()

    def show(self, console: Console) -> None:
        """Prints it for people."""
        console.print(_table(self.remarks))
        if self.audit is not None:
            _show_books(console, self.audit)
        if self.repaired:
            console.print("What was in no list is filed again.")


def _table(remarks: Sequence[Remark]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for remark in remarks:
        style = _STYLES[remark.verdict]
        table.add_row(remark.name, Text(remark.verdict, style=style), Text(printable(remark.text)))
    return table


def _show_books(console: Console, audit: Audit) -> None:
    seen = ", ".join((counted(audit.users, "user"), counted(audit.accounts, "account"), counted(audit.leases, "lease")))
    console.print()
    console.print(f"Books of {seen}; requests in flight: {audit.in_flight}.")
    _show_findings(console, audit.findings, audit.finding_count, Text("wrong", style="bold red"))
    _show_findings(console, audit.notes, audit.note_count, Text("note", style="yellow"))
    if audit.balanced:
        console.print(Text("The books balance.", style="green"))
    else:
        console.print(Text(f"The books do not balance: {counted(audit.finding_count, 'finding')}.", style="bold red"))


def _show_findings(console: Console, findings: Sequence[Finding], count: int, label: Text) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for finding in findings[:_MOST_SHOWN]:
        table.add_row(label, Text(printable(finding.user_id)), Text(printable(finding.what)))
    if findings:
        console.print(table)
    if count > _MOST_SHOWN:
        console.print(f"... and {count - _MOST_SHOWN} more; --json has up to a thousand.")
