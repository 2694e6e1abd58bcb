"""What all lists share: parameters that hold several values, and the number of pages."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from llmweir.record_fields import Name

MAX_PAGE = 1_000_000


def pages_of(total: int, page_size: int) -> int:
    """The number of pages that `total` entries fill."""
    return -(-total // page_size)


def _split(value: object) -> object:
    """A parameter that came once holds its values between commas; one that came several times, one each."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


CommaList = Annotated[list[Name], BeforeValidator(_split)]
