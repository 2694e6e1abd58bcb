"""Every setting, once: a keyword argument, an env variable, a key of `llmweir.toml`, a flag, a row of the docs."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from llmweir.engine.redis_url import read_redis_url
from llmweir.errors import InvalidValueError
from llmweir.mail import read_smtp_url

ENV_PREFIX = "LLMWEIR_"
CONFIG_FILE = "llmweir.toml"

UnknownPaths = Literal["refuse", "count"]


def _parse_list(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _parse_json(value)
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _parse_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parsed: object = json.loads(value)
    except ValueError as error:
        raise ValueError(f"should be JSON ({error})") from error
    return parsed


def _check_upstream(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("should be an http:// or https:// URL")
    if "@" in parts.netloc:
        raise ValueError("should carry no user or password; see upstream_api_key")
    if parts.query or parts.fragment:
        raise ValueError("should have no query and no fragment")
    return value.rstrip("/")


def _check_redis_url(value: SecretStr) -> SecretStr:
    read_redis_url(value.get_secret_value())
    return value


def _check_webhook(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("should be an http:// or https:// URL")
    return value


def _check_smtp_url(value: SecretStr) -> SecretStr:
    read_smtp_url(value.get_secret_value())
    return value


def _check_public_url(value: str) -> str:
    host = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
    if not re.fullmatch(rf"https?://{host}(/[A-Za-z0-9._~%-]+)*/?", value):
        raise ValueError("should be an http:// or https:// URL: a host in ASCII, perhaps a port and a path, no more")
    return value.rstrip("/")


def _check_secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("should be printable ASCII without spaces, and not empty")
    return value


def _check_prefix(value: str) -> str:
    prefix = value.rstrip("/")
    if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
        raise ValueError("should be empty, or a path such as /llmweir")
    return prefix


def _check_patterns(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not re.fullmatch(r"([A-Z]+ )?/[^\s*?#]*\*?", value):
            raise ValueError(f"{value!r} should be a path, or a method and a path; a * stands only at the end")
    return values


def _check_status(value: int) -> int:
    if value not in {402, 403, 422, 429}:
        raise ValueError("should be 402, 403, 422 or 429")
    return value


def _check_header(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", value):
        raise ValueError("should be the name of a header")
    return value.lower()


Secret = Annotated[SecretStr, AfterValidator(_check_secret)]
PathPatterns = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_list), AfterValidator(_check_patterns)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**53 - 1)]


@dataclass(frozen=True)
class Paths:
    """The settings of paths whose defaults depend on where llmweir stands, resolved."""

    admin_prefix: str
    open_paths: tuple[str, ...]
    unknown_paths: UnknownPaths


@dataclass(frozen=True)
class SettingInfo:
    """One setting as flags and docs show it; `default` is None where there is none or it depends on the place."""

    name: str
    env: str
    flag: str
    default: JsonValue
    description: str


class Settings(BaseSettings):
    """The settings, from keyword arguments, else the environment, else the config file, else the defaults.

    The config file is the one that `LLMWEIR_CONFIG` names, else `llmweir.toml` in the working directory. Raises
    `InvalidValueError` that names each setting that is not valid and where it came from, never its value. Secrets
    show in no `repr` and no log.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    upstream: Annotated[str, AfterValidator(_check_upstream)] | None = Field(
        None, description="Base URL in front of which `serve` stands; its path prefix is kept."
    )
    upstream_api_key: Secret | None = Field(
        None,
        description="Key sent upstream: `Authorization: Bearer`, `x-api-key` on Anthropic paths, `x-goog-api-key` on "
        "Gemini's.",
    )
    forward_caller_key: bool = Field(False, description="Sends the caller's own key upstream as well.")
    upstream_timeout_s: PositiveSeconds = Field(600, description="How long the upstream may stay silent, in seconds.")
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8787, ge=0, le=65_535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=1024, description="Number of worker processes.")
    redis_url: Annotated[SecretStr, AfterValidator(_check_redis_url)] | None = Field(
        None,
        description="Where Redis is: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`. "
        "Without it a bundled Valkey is started.",
    )
    data_dir: Path = Field(
        Path("llmweir-data"),
        description="Folder of the bundled Valkey's files, and of what is kept while Redis is away.",
    )
    fsync: Literal["everysec", "always"] = Field(
        "everysec",
        description="When the disk has what the bundled Valkey and the outbox write: within a second, or at once.",
    )
    outbox_max_bytes: Count = Field(
        1_073_741_824,
        description="Size of a worker's outbox, in bytes, from which on nobody is let through while Redis is away.",
    )
    master_key: Secret | None = Field(None, description="Key that may do everything; without it admin routes are 503.")
    key_header: Annotated[str, AfterValidator(_check_header)] | None = Field(
        None, description="A further header to read a caller's key from."
    )
    admin_prefix: Annotated[str, AfterValidator(_check_prefix)] | None = Field(
        None, description="Prefix of the admin routes. Default: none in front, `/llmweir` around an app."
    )
    open_paths: PathPatterns | None = Field(
        None, description="Paths that need no key. Default: none in front, `/health*` around an app."
    )
    free_paths: PathPatterns = Field(
        ("GET /v1/models*",), description="Paths that need a key and count nothing; a trailing `*` matches a prefix."
    )
    unknown_paths: UnknownPaths | None = Field(
        None,
        description="A path of no known format: `refuse` with 404, or `count` as one request. Default: `refuse` in "
        "front, `count` around an app.",
    )
    on_store_failure: Literal["closed", "open"] = Field(
        "closed",
        description="While Redis is away: refuse with 503 (`closed`), or let callers through that were let in before "
        "(`open`).",
    )
    store_timeout_ms: int = Field(
        500, ge=1, le=600_000, description="How long a request may wait for Redis in all, in milliseconds."
    )
    reserve: Literal["expected", "max", "none"] = Field(
        "expected", description="Output tokens to hold: what answers usually take, the most they may take, or none."
    )
    default_max_output_tokens: Count = Field(1024, description="Output tokens to hold while nothing better is known.")
    unpriced_models: Literal["refuse", "free"] = Field(
        "refuse",
        description="A model without a price, for a caller with a money budget: `refuse`, or let it be `free`.",
    )
    price_file: Path | None = Field(
        None, description="Own prices in JSON or TOML, in USD per million tokens; they win over the catalogue."
    )
    budget_exceeded_status: Annotated[int, AfterValidator(_check_status)] = Field(
        429, description="Status where a budget is spent."
    )
    lease_ttl_s: int = Field(
        30, ge=2, le=86_400, description="Life of a request's slot without a heartbeat, in seconds."
    )
    lease_renew_s: int = Field(10, ge=1, le=86_400, description="Time between heartbeats, in seconds.")
    max_body_bytes: Count = Field(33_554_432, description="Largest request body, in bytes.")
    max_header_bytes: Count = Field(65_536, description="Largest request head, in bytes.")
    body_timeout_s: PositiveSeconds = Field(30, description="How long a head or a body may take to arrive, in seconds.")
    drain_timeout_s: Seconds = Field(30, description="How long running requests may finish at shutdown, in seconds.")
    memo_ttl_s: int = Field(
        86_400,
        ge=1,
        le=31_536_000,
        description="How long expired leases and replayed settlements are remembered, in seconds.",
    )
    default_user: Annotated[dict[str, JsonValue], NoDecode, BeforeValidator(_parse_json)] | None = Field(
        None, description="Record fields for callers that the app names and no record knows; without it they are 401."
    )
    alert_webhook_url: Annotated[SecretStr, AfterValidator(_check_webhook)] | None = Field(
        None, description="URL that gets a POST for every alert, such as a soft budget crossed."
    )
    metrics_public: bool = Field(
        False, description="Opens `GET /metrics` to all; else it takes an admin's or a viewer's key."
    )
    smtp_url: Annotated[SecretStr, AfterValidator(_check_smtp_url)] | None = Field(
        None,
        description="Mail server that sends invitations: `smtp://user:password@host:587?from=weir@example.com`, or "
        "`smtps://`.",
    )
    public_url: Annotated[str, AfterValidator(_check_public_url)] | None = Field(
        None, description="Where people reach llmweir, for the links in mails: `https://weir.example.com`."
    )

    def __init__(self, **values: object) -> None:
        _refuse_unknown(values, "")
        file_path, file_values = _read_config()
        try:
            super().__init__(**cast(dict[str, Any], values))
        except ValidationError as error:
            raise InvalidValueError(_describe(error, values, file_path, file_values)) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keyword arguments before the environment before the config file; nothing else is read."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, _read_config()[1])

    @model_validator(mode="after")
    def _renew_before_expiry(self) -> Self:
        if self.lease_renew_s >= self.lease_ttl_s:
            raise ValueError("lease_renew_s should be less than lease_ttl_s")
        return self

    @model_validator(mode="after")
    def _links_lead_somewhere(self) -> Self:
        if self.smtp_url is not None and self.public_url is None:
            raise ValueError("smtp_url needs public_url: where the links in the mails are to point")
        return self

    def for_front(self) -> Paths:
        """The paths' settings with the defaults of a proxy in front: nothing is open or uncounted unless listed."""
        return self._paths("", (), "refuse")

    def for_around(self) -> Paths:
        """The paths' settings with the defaults of a middleware around an app, whose other routes keep working."""
        return self._paths("/llmweir", ("/health*",), "count")

    def _paths(self, admin_prefix: str, open_paths: tuple[str, ...], unknown_paths: UnknownPaths) -> Paths:
        return Paths(
            admin_prefix=admin_prefix if self.admin_prefix is None else self.admin_prefix,
            open_paths=open_paths if self.open_paths is None else self.open_paths,
            unknown_paths=unknown_paths if self.unknown_paths is None else self.unknown_paths,
        )


def describe_settings() -> tuple[SettingInfo, ...]:
    """Every setting in order, for the flags of the command line and the table of the docs."""
    return tuple(_info(name, field) for name, field in Settings.model_fields.items())


def _info(name: str, field: FieldInfo) -> SettingInfo:
    default = field.default
    if isinstance(default, Path):
        default = f"./{default}"
    elif isinstance(default, tuple):
        default = list(default)
    return SettingInfo(
        name=name,
        env=ENV_PREFIX + name.upper(),
        flag="--" + name.replace("_", "-"),
        default=default,
        description=field.description or "",
    )


def _read_config() -> tuple[Path, dict[str, object]]:
    """The config file's path and members; a file that is not there is empty unless it was asked for by name."""
    named = os.environ.get(ENV_PREFIX + "CONFIG")
    path = Path(named or CONFIG_FILE)
    try:
        values: dict[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if named:
            raise InvalidValueError(f"The config file {path} does not exist.") from error
        return path, {}
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"The config file {path} cannot be read: {error}.") from error
    _refuse_unknown(values, f" (in {path})")
    return path, values


def _refuse_unknown(names: Iterable[str], origin: str) -> None:
    known = list(Settings.model_fields)
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else "."
            raise InvalidValueError(f"{name} is not a setting{origin}{hint}")


def _describe(
    error: ValidationError, values: dict[str, object], file_path: Path, file_values: dict[str, object]
) -> str:
    """One line a problem, with the setting's name as it was given; a value is never shown: it may be a secret."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        env = ENV_PREFIX + name.upper()
        if name and name not in values and os.environ.get(env):
            lines.append(f"{env}: {message}")
        elif name and name not in values and name in file_values:
            lines.append(f"{name} (in {file_path}): {message}")
        else:
            lines.append(f"{name}: {message}" if name else message)
    return "\n".join(["The settings are not valid.", *lines])
