"""How calls name API keys, and what a list of keys is asked for by."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from llmweir.admin.lists import MAX_PAGE
from llmweir.admin.routes import Query
from llmweir.key_records import KeyName
from llmweir.record_fields import Name, RequestBody

MAX_KEYS = 500


class NamedKey(RequestBody):
    """The key that a call is about: in clear, by its SHA-256 in hex, or by its alias."""

    key: KeyName | None = Field(default=None, repr=False)
    key_alias: Name | None = None

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.key is None) == (self.key_alias is None):
            raise ValueError("A key is named by key or by key_alias.")
        return self


class NamedKeys(RequestBody):
    """The keys that a call is about, in clear or by their SHA-256 in hex, and more by their aliases."""

    keys: Annotated[list[KeyName], Field(max_length=MAX_KEYS)] | None = Field(default=None, repr=False)
    key_aliases: Annotated[list[Name], Field(max_length=MAX_KEYS)] | None = None

    @model_validator(mode="after")
    def _names_some(self) -> Self:
        if not self.keys and not self.key_aliases:
            raise ValueError("Keys are named by keys or by key_aliases, or by both.")
        return self


class AboutKey(Query):
    """The key that a call is about; the one presented where none is named."""

    key: KeyName | None = Field(default=None, repr=False)


class KeySearch(Query):
    """Which keys a list shows, newest first."""

    page: int = Field(default=1, ge=1, le=MAX_PAGE)
    size: int = Field(default=10, ge=1, le=100)
    user_id: Name | None = None
    key_alias: Name | None = None
    team_id: Name | None = None
    return_full_object: bool = False
