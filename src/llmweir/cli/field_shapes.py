"""What each field of a request body looks like on the command line, read from the model that validates it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from pydantic import BaseModel

Kind = Literal["text", "choice", "number", "switch", "secret", "names", "entries", "json"]
Worth = Literal["text", "number", "number or object"]


class FieldShape(msgspec.Struct, frozen=True, kw_only=True):
    """A field: how it is given, `choices` of a choice, `worth` of each entry of a dict; `metavar` names its value."""

    name: str = ""
    description: str = ""
    kind: Kind
    metavar: str = ""
    choices: tuple[str, ...] = ()
    worth: Worth = "text"


def shapes_of(model: type[BaseModel]) -> tuple[FieldShape, ...]:
    """Every field that a body may hold, in the model's order; one that takes nothing but null is none."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    shapes = []
    for name in model.model_fields:  # the schema may name more: what is taken when empty, and means nothing
        field = schema["properties"][name]
        for value in _alternatives(field, definitions)[:1]:
            shape = _container(value, definitions) or _scalar(value)
            shapes.append(msgspec.structs.replace(shape, name=name, description=field.get("description", "")))
    return tuple(shapes)


def _alternatives(schema: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """What a schema may be besides null, references followed."""
    if "$ref" in schema:
        return _alternatives(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema or "oneOf" in schema:
        branches = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        return [each for branch in branches for each in _alternatives(branch, definitions)]
    return [] if schema.get("type") == "null" else [schema]


def _scalar(schema: dict[str, Any]) -> FieldShape:
    match schema:
        case {"enum": list(choices)}:
            return FieldShape(kind="choice", choices=tuple(choices))
        case {"type": "boolean"}:
            return FieldShape(kind="switch")
        case {"type": "integer"}:
            return FieldShape(kind="number", metavar="N")
        case {"type": "number"}:
            return FieldShape(kind="number", metavar="USD")
        case {"type": "string", "format": "password"}:
            return FieldShape(kind="secret")
        case {"type": "string"}:
            return FieldShape(kind="text", metavar="DURATION" if "examples" in schema else "TEXT")
        case _:
            return FieldShape(kind="json", metavar="JSON")


def _container(schema: dict[str, Any], definitions: dict[str, Any]) -> FieldShape | None:
    """The shape of a list of texts, or of a dict whose values all are texts or numbers; None for all others."""
    match schema:
        case {"type": "array", "items": {"type": "string"}}:
            return FieldShape(kind="names", metavar="NAME")
        case {"type": "object", "patternProperties": dict(entries)}:  # the names follow a pattern
            found = [each for entry in entries.values() for each in _alternatives(entry, definitions)]
        case {"type": "object", "additionalProperties": dict(entry)}:
            found = _alternatives(entry, definitions)
        case _:
            return None
    types = {str(each.get("type")) for each in found}
    if types == {"string"}:
        return FieldShape(kind="entries", metavar="NAME=TEXT", worth="text")
    if types == {"integer"}:
        return FieldShape(kind="entries", metavar="NAME=N", worth="number")
    if types in ({"number"}, {"number", "object"}):
        worth: Worth = "number or object" if "object" in types else "number"
        return FieldShape(kind="entries", metavar="NAME=USD", worth=worth)
    return None
