"""Makes `docs/fields.md` from the table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.effects.table import READ_ONLY_ROWS, READ_ONLY_TEST, ROWS, Of, Row

PAGE = Path(__file__).parents[2] / "docs/fields.md"
_TESTS = "../tests/effects/test_effects.py"
_HEAD = f"""# What every field does

Each row is proved over HTTP by [a test]({_TESTS}): two gates, each a process of
its own, share one store; the field is set on one, the next request on the other comes out as the row says, and as
before once the field is cleared, by `null` and, where there is such a value, by `[]`, `{{}}` or `false`.
`scripts/test tests/effects -k NAME` runs the tests whose names are in the last column. How limits count is in
[limits.md](limits.md), the shapes of values in [admin.md](admin.md).

This page is written by `python -m tests.effects`.
"""


def text() -> str:
    """The whole page."""
    parts = [
        _HEAD,
        "## A user\n",
        _table("user", ROWS["user"]),
        "## A user, read only\n\nSent, each of them is 422.\n",
        _table("user", READ_ONLY_ROWS, READ_ONLY_TEST),
        "## An API key\n\nA key's own limits hold on top of its user's.\n",
        _table("key", ROWS["key"]),
    ]
    return "\n".join(parts)


def _table(of: Of, rows: Iterable[Row], test: str = "") -> str:
    lines = [f"| `{row.field}` | {row.says} | `{row.test or test or f'{of}-{row.name}'}` |" for row in rows]
    return "\n".join(("| field | what it does | proved by |", "|---|---|---|", *lines, ""))
