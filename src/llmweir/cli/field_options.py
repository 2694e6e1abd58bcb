"""Every field of a request body as an option of a command, made from the model that validates the body."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeAlias

import click
from pydantic import BaseModel

from llmweir.cli.asking import ask_secret, is_at_terminal, read_secret
from llmweir.cli.field_shapes import FieldShape, shapes_of
from llmweir.cli.field_words import WORDS
from llmweir.cli.param_types import JSON_OBJECT, NUMBER, TEXT, Entries, FieldName

Command: TypeAlias = Callable[..., None]
Decorate: TypeAlias = Callable[[Command], Command]
OTHER_NAMES = (("key", "secret"), ("new_key", "secret"))
"""Fields whose option has a name of its own: `--key` is the key that the command itself calls with."""

NEVER_NONE = frozenset({"user_id", "new_key", "auto_create_key", "send_invite_email"})
"""Fields that mean nothing as null."""


def with_fields(model: type[BaseModel], *, leave_out: Collection[str] = (), clears: bool = False) -> Decorate:
    """Gives a command an option for each field of a model; it is called with `body`, the fields that were given.

    With `clears` there is `--clear FIELD` too, which sends null. A new field of the model is an option by itself.
    """
    shapes = [shape for shape in shapes_of(model) if shape.name not in leave_out]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_body(**given: Any) -> None:
            body = _body(shapes, {shape.name: _taken(shape, given) for shape in shapes}, given.pop("clear", ()))
            command(body=body, **given)

        options: list[Decorate] = [option for shape in shapes for option in _options(shape)]
        if clears:
            options.append(_clear_option(tuple(shape.name for shape in shapes if shape.name not in NEVER_NONE)))
        return with_options(with_body, options)

    return decorate


def with_options(command: Command, options: Sequence[Decorate]) -> Command:
    """Gives a command options, which `--help` shows in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def flag_of(name: str) -> str:
    """The option of a field: "rpm_limit" is "--rpm-limit"."""
    return "--" + dict(OTHER_NAMES).get(name, name).replace("_", "-")


def _options(shape: FieldShape) -> list[Decorate]:
    flag, words = flag_of(shape.name), shape.description or WORDS.get(shape.name, "")
    match shape.kind:
        case "switch":
            return [click.option(f"{flag}/--no-{flag[2:]}", shape.name, default=None, help=words)]
        case "secret":
            ask, read = f"--ask-{flag[2:]}", f"{flag}-stdin"
            return [
                click.option(ask, f"{shape.name}_asked", is_flag=True, help=f"Ask for {words}, hidden."),
                click.option(read, f"{shape.name}_read", is_flag=True, help=f"Read {words} from standard input."),
            ]
        case "choice":
            one_of = f"{words} One of {', '.join(shape.choices)}.".strip()
            return [click.option(flag, shape.name, type=click.Choice(shape.choices), metavar="NAME", help=one_of)]
        case "names" | "entries":
            many: click.ParamType[Any] = Entries(shape.worth) if shape.kind == "entries" else TEXT
            again = f"{words} Repeatable.".strip()
            return [click.option(flag, shape.name, type=many, metavar=shape.metavar, multiple=True, help=again)]
        case "text" | "number" | "json":
            types: dict[str, click.ParamType[Any]] = {"text": TEXT, "number": NUMBER, "json": JSON_OBJECT}
            return [click.option(flag, shape.name, type=types[shape.kind], metavar=shape.metavar, help=words)]


def _clear_option(names: tuple[str, ...]) -> Decorate:
    words = "Set a field back to none, such as rpm_limit. Repeatable."
    return click.option("--clear", type=FieldName(names), metavar="FIELD", multiple=True, help=words)


def _taken(shape: FieldShape, given: dict[str, Any]) -> Any:
    """Takes what was given for a field out of the command's arguments; None where nothing was."""
    if shape.kind == "secret":
        is_asked, is_read = given.pop(f"{shape.name}_asked"), given.pop(f"{shape.name}_read")
        return _secret(shape.name, is_asked, is_read)
    value = given.pop(shape.name)
    if shape.kind == "names":
        return list(value) or None
    if shape.kind == "entries":
        return {name: worth for entries in value for name, worth in entries.items()} or None
    return value


def _secret(name: str, is_asked: bool, is_read: bool) -> str | None:
    flag = flag_of(name)
    if is_asked and is_read:
        raise click.UsageError(f"--ask-{flag[2:]} and {flag}-stdin are two ways to do the same; give one.")
    if is_read:
        return read_secret()
    if not is_asked:
        return None
    if not is_at_terminal():
        raise click.UsageError(f"There is no terminal to ask on; use {flag}-stdin.")
    return ask_secret(flag[2:].capitalize(), twice=True)


def _body(shapes: Iterable[FieldShape], values: dict[str, Any], cleared: Collection[str]) -> dict[str, Any]:
    body = {shape.name: values[shape.name] for shape in shapes if values[shape.name] is not None}
    for name in cleared:
        if name in body:
            raise click.UsageError(f"{flag_of(name)} and --clear {name} contradict each other.")
        body[name] = None
    return body
