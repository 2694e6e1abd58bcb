"""The types of a record's fields: what a body may hold, what is said of what it may not, how a time is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    PlainValidator,
    SecretStr,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from llmweir import durations, money

MAX_WHOLE = 2**53 - 1
MAX_ENTRIES = 1_000
MAX_JSON_BYTES = 65_536
MAX_JSON_DEPTH = 32
_MAX_PROBLEMS = 100
_MAX_LOC_CHARS = 256
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_CONTROLS = r"\x00-\x1f\x7f-\x9f"

UserRole = Literal[
    "proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer", "team", "customer"
]  # fmt: skip
READ_ONLY = frozenset({"reserved", "budget_reset_at", "created_at", "updated_at", "model_spend"})
_EMPTY: tuple[JsonValue, ...] = (None, False, "", [], {})


class RequestBody(BaseModel):
    """A body of the admin API: strict types, unknown fields refused, no value in the text of an error."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, protected_namespaces=()
    )


def _document_unused(schema: dict[str, JsonValue], body: type[FieldsBody]) -> None:
    unused: dict[str, JsonValue] = {name: {"enum": list(_EMPTY)} for name in sorted(body.unused_fields)}
    properties = schema["properties"]
    assert isinstance(properties, dict)  # noqa: S101 (it is the schema of an object)
    for name in body.null_texts & properties.keys():
        shown = properties[name]
        assert isinstance(shown, dict) and isinstance(shown["anyOf"], list)  # noqa: S101, PT018 (null is among them)
        shown["anyOf"].append({"const": ""})
    schema["properties"] = properties | unused


class FieldsBody(RequestBody):
    """A body whose `model_fields_set` names the fields that were sent, null among them unless `null_is_absent`.

    `unused_fields` are those that clients of the LiteLLM proxy send and that mean nothing here: taken when empty,
    and then as if they had not been sent. `null_texts` are those where an empty text stands for null: clients written
    in Go send one for what is not set.
    """

    model_config = ConfigDict(json_schema_extra=_document_unused)
    null_is_absent: ClassVar[bool] = False
    unused_fields: ClassVar[frozenset[str]] = frozenset()
    null_texts: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _as_sent(cls, body: object) -> object:
        if not isinstance(body, dict):
            return body
        unused = cls.unused_fields & body.keys()
        refused = sorted(name for name in unused if not _is_empty(body[name]))
        if refused:
            raise ValidationError.from_exception_data(cls.__name__, [_unused(name) for name in refused])
        used = {name: sent for name, sent in body.items() if name not in unused}
        used |= dict.fromkeys(name for name in cls.null_texts & used.keys() if used[name] == "")
        return {name: sent for name, sent in used.items() if cls._counts(name, sent)}

    @classmethod
    def _counts(cls, name: str, sent: object) -> bool:
        return sent is not None or not cls.null_is_absent or name not in cls.model_fields


def _is_empty(value: object) -> bool:
    return any(type(value) is type(empty) and value == empty for empty in _EMPTY)


def _unused(name: str) -> InitErrorDetails:
    message = "This field means nothing here: leave it out, or send null."
    return InitErrorDetails(type=PydanticCustomError("unused_field", message), loc=(name,), input=None)


class ModelBudget(msgspec.Struct, frozen=True):
    """The budget of one model (or of a prefix); `duration` None follows the period of the user."""

    limit_nanos: int
    duration: durations.Duration | None = None


def problems(error: ValidationError) -> list[dict[str, object]]:
    """Lists what is wrong with a body as `{"type", "loc", "msg"}`, at most 100, without any of the values sent."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [_problem(line["type"], line["loc"], line["msg"]) for line in found[:_MAX_PROBLEMS]]


def _problem(kind: str, loc: tuple[int | str, ...], message: str) -> dict[str, object]:
    if kind == "extra_forbidden":
        read_only = len(loc) == 1 and loc[0] in READ_ONLY
        kind = "read_only" if read_only else kind
        message = "This field is read only." if read_only else "This field is not known."
    if len(loc) > 2 and loc[0] == "model_max_budget":
        loc = loc[:2] + loc[3:]  # the third names the shape that was tried, not a place in the body
    parts = [part[:_MAX_LOC_CHARS] if isinstance(part, str) else part for part in loc]
    return {"type": kind, "loc": ["body", *parts], "msg": message.removeprefix("Value error, ")}


class Documented(msgspec.Struct, frozen=True):
    """Members of a type's JSON schema that say what its validator sees to."""

    members: tuple[tuple[str, str | bool], ...]

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), **dict(self.members)}


def _shown_as(pattern: str) -> Documented:
    return Documented((("pattern", f"^{pattern}$"),))


def _printable(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("Control characters are not allowed.")
    return text


def _pattern(text: str) -> str:
    if "*" in text[:-1]:
        raise ValueError("A '*' is allowed only as the last character, where it matches a prefix.")
    return text


def _exact(text: str) -> str:
    if "*" in text:
        raise ValueError("An alias and what it stands for are exact names, without '*'.")
    return text


def _email(text: str) -> str:
    if not _EMAIL.fullmatch(_printable(text)):
        raise ValueError("An email address has one '@' with something on both sides, and no spaces.")
    return text


def _password(secret: SecretStr) -> SecretStr:
    if not 8 <= len(_printable(secret.get_secret_value())) <= 1_024:
        raise ValueError("A password has 8 to 1024 characters.")
    return secret


def _duration(text: str) -> str:
    return durations.parse(text).text


def _usd(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("An amount of USD is a number from 0 to 9000000.")
    money.usd_to_nanos(value)
    return abs(value)  # -0.0 reads 0.0


def _whole(value: object) -> int:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, bool) or not isinstance(whole, int) or not 0 <= whole <= MAX_WHOLE:
        raise ValueError(f"This is a whole number from 0 to {MAX_WHOLE}.")
    return whole


def _shallow(value: object) -> object:
    level = _containers([value])
    for _ in range(MAX_JSON_DEPTH):
        level = [child for parent in level for child in _containers(parent)]
    if level:
        raise ValueError(f"Objects and lists nest at most {MAX_JSON_DEPTH} deep.")
    return value


def _containers(parent: dict[object, object] | list[object]) -> list[dict[object, object] | list[object]]:
    children = parent.values() if isinstance(parent, dict) else parent
    return [child for child in children if isinstance(child, dict | list)]


def _small(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        size_bytes = len(canonical_json(value).encode())
    except ValueError as unwritable:  # NaN, infinity, a lone surrogate, an integer of thousands of digits
        raise ValueError("Numbers are finite and of at most 4300 digits, text is Unicode.") from unwritable
    if size_bytes > MAX_JSON_BYTES:
        raise ValueError(f"The field is larger than {MAX_JSON_BYTES} bytes of JSON.")
    return value


def canonical_json(value: JsonValue) -> str:
    """Spells a JSON value on one line, in the order it came in; raises ValueError where JSON has no word for it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


_Entries = Field(max_length=MAX_ENTRIES)
_NAMED_VALUES = Documented((("additionalProperties", False),))
Name = Annotated[
    str, Field(min_length=1, max_length=256), AfterValidator(_printable), _shown_as(f"[^{_CONTROLS}]+")
]  # fmt: skip
ModelPattern = Annotated[Name, AfterValidator(_pattern), _shown_as(f"[^*{_CONTROLS}]*[^{_CONTROLS}]")]
_ExactName = Annotated[Name, AfterValidator(_exact), _shown_as(f"[^*{_CONTROLS}]+")]
Email = Annotated[
    str,
    Field(min_length=3, max_length=320),
    AfterValidator(_email),
    _shown_as(rf"[^@\s{_CONTROLS}]+@[^@\s{_CONTROLS}]+"),
]
Password = Annotated[
    SecretStr,
    AfterValidator(_password),
    WithJsonSchema(
        {
            "type": "string", "format": "password", "minLength": 8, "maxLength": 1024, "writeOnly": True,
            "pattern": f"^[^{_CONTROLS}]+$",
        }
    ),
]  # fmt: skip
DurationText = Annotated[
    str,
    AfterValidator(_duration),
    Field(examples=["30s", "30m", "30h", "30d", "2w", "1mo"]),
    _shown_as(durations.pattern()),
]
Usd = Annotated[
    int | float,
    PlainValidator(_usd),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": money.MAX_USD}),
]
Whole = Annotated[
    int,
    PlainValidator(_whole),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_WHOLE}),
]
Names = Annotated[list[Name], _Entries]
ModelList = Annotated[list[ModelPattern], _Entries]
ModelLimits = Annotated[dict[ModelPattern, Whole], _Entries, _NAMED_VALUES]
Aliases = Annotated[dict[_ExactName, _ExactName], _Entries, _NAMED_VALUES]
JsonDict = Annotated[dict[str, JsonValue], _Entries, BeforeValidator(_shallow), AfterValidator(_small)]


class ModelBudgetBody(RequestBody):
    """A budget of one model with a period of its own, under either of the two names of each member."""

    max_budget: Usd | None = None
    budget_limit: Usd | None = None
    budget_duration: DurationText | None = None
    time_period: DurationText | None = None

    @model_validator(mode="after")
    def _one_name_each(self) -> ModelBudgetBody:
        if (self.max_budget is None) == (self.budget_limit is None):
            raise ValueError("A model's budget has either max_budget or budget_limit.")
        if self.budget_duration is not None and self.time_period is not None:
            raise ValueError("A model's budget has budget_duration or time_period, not both.")
        return self


def _shape(value: object) -> str | None:
    if isinstance(value, ModelBudgetBody | Mapping):
        return "object"
    return None if value is None else "usd"


ModelBudgets = Annotated[
    dict[
        ModelPattern,
        Annotated[
            Annotated[Usd, Tag("usd")] | Annotated[ModelBudgetBody, Tag("object")],
            Discriminator(
                _shape,
                custom_error_type="model_budget",
                custom_error_message="A model's budget is a number of USD, or an object.",
            ),
        ],
    ],
    _Entries,
    _NAMED_VALUES,
]


def read_model_budget(sent: object) -> ModelBudget:
    """Reads a model's budget in any of the shapes in which it is sent and stored."""
    body = ModelBudgetBody.model_validate(sent if isinstance(sent, dict | ModelBudgetBody) else {"max_budget": sent})
    usd = body.budget_limit if body.max_budget is None else body.max_budget
    text = body.budget_duration or body.time_period
    return ModelBudget(money.usd_to_nanos(usd or 0), durations.parse(text) if text else None)


def caseless_email(address: str) -> str:
    """An email address without the case of its letters; addresses that differ in more stay apart.

    Unicode's case folding goes further: it makes "ss" of "ß" and "k" of the Kelvin sign, and those are other mailboxes.
    """
    return "".join(small if (small := char.lower()).upper() == char else char for char in address)


def iso_time(at_ms: int) -> str:
    """Spells a time in ms since 1970 UTC as ISO 8601, to the ms: "2026-01-31T12:00:00.000Z"."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    return at.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
