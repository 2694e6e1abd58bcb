"""`python -m tests.effects` writes `docs/fields.md` anew."""

from __future__ import annotations

from tests.effects.page import PAGE, text

PAGE.write_text(text())
