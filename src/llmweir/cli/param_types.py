"""How the words of a command become values of a request body."""

from __future__ import annotations

import json
import math
from typing import Any

import click

from llmweir.cli.field_shapes import Worth
from llmweir.cli.remote import Address


class Text(click.ParamType[str]):
    """Text that a request can carry."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuses bytes that are no UTF-8."""
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail("this is not UTF-8.", param, ctx)
        return str(value)


class Number(click.ParamType[float]):
    """A number as JSON has it; the server knows which it takes."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuses what is no number, NaN and infinity among it."""
        number = _json(str(value))
        if isinstance(number, bool) or not isinstance(number, int | float):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class Entries(click.ParamType[dict[str, object]]):
    """Some entries of a dict: `name=value`, or a JSON object of them."""

    name = "entries"

    def __init__(self, worth: Worth) -> None:
        self._worth = worth

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, object]:
        """Takes a value apart at the first `=`."""
        given = TEXT.convert(value, param, ctx)
        if given.lstrip().startswith("{"):
            return JSON_OBJECT.convert(given, param, ctx)
        entry, equals, text = given.partition("=")
        if not equals or not entry:
            self.fail(f"{value!r} is not NAME=VALUE.", param, ctx)
        return {entry: text if self._worth == "text" else self._number(text, param, ctx)}

    def _number(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if self._worth == "number or object" and text.lstrip().startswith("{"):
            return JSON_OBJECT.convert(text, param, ctx)
        return NUMBER.convert(text, param, ctx)


class JsonObject(click.ParamType[dict[str, object]]):
    """A dict of anything, as JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, object]:
        """Refuses what is no JSON object."""
        found = _json(TEXT.convert(value, param, ctx))
        if not isinstance(found, dict):
            self.fail("""this is not a JSON object, such as '{"team": "search"}'.""", param, ctx)
        return found


class FieldName(click.ParamType[str]):
    """One of some fields, with dashes or underscores."""

    name = "field"

    def __init__(self, fields: tuple[str, ...]) -> None:
        self._fields = fields

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuses a field that is none."""
        field = str(value).replace("-", "_")
        if field not in self._fields:
            self.fail(f"{value!r} is none of {', '.join(self._fields)}.", param, ctx)
        return field


class Server(click.ParamType[Address]):
    """The URL of a server."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """Refuses what is no URL of a server; says why, and does not repeat it."""
        try:
            return Address.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _json(text: str) -> object:
    """Reads JSON; None where it is none, or holds a number that JSON has no word for."""
    try:
        value: object = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse(text)
    return number


def _refuse(text: str) -> None:
    raise ValueError(text)


TEXT = Text()
NUMBER = Number()
JSON_OBJECT = JsonObject()
SERVER = Server()
