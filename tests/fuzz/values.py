"""Targets on plain values: records, keys, durations, money, mail, packed commands."""

from __future__ import annotations

import json
from typing import Final

import hiredis
import msgspec
from pydantic import ValidationError
from tests.fuzz.inputs import Input

from llmweir import durations, key_records, mail, money, records
from llmweir.engine import keys
from llmweir.engine.flatten import changes_of
from llmweir.engine.packing import Blank, template
from llmweir.errors import InvalidValueError

_NOW_MS: Final = 1_800_000_000_000
_KEY: Final = key_records.KeyRecord(key_name="sk-...1234", token="0" * 64, user_id="u", created_at_ms=_NOW_MS)
_KEY_BODIES: Final[tuple[type[key_records.KeyFields], ...]] = (
    key_records.NewKey,
    key_records.KeyUpdate,
    key_records.KeyRegeneration,
)
_TEMPLATE_NUMBERS: Final = (0, -1, 2**53 - 1, 10**16, 9_000_000_000_000_000, 1)


def pack(*parts: str | int | bytes) -> bytes:
    packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub has a tuple of one
    return packed


def new_user(data: bytes) -> None:
    """A body is a new user, or pydantic says why not; what is stored of it reads back."""
    try:
        body = records.parse_new(data)
    except ValidationError as error:
        json.dumps(records.problems(error), allow_nan=False).encode()
        return
    _check_changes(body)
    stored = {name: text for name, text in records.stored_fields(body).items() if text is not None}
    record = records.record_from_stored("u", stored, created_at_ms=_NOW_MS, updated_at_ms=_NOW_MS)
    shown = records.as_json(record)
    json.dumps(shown, allow_nan=False).encode()
    assert record.max_budget_nanos == body.max_budget_nanos
    assert record.model_budgets == body.model_budgets
    for text in stored.values():
        assert msgspec.json.decode(text) == json.loads(text)
    again = {name: value for name, value in shown.items() if name in stored}
    round_trip = records.stored_fields(records.parse_new(json.dumps(again).encode()))
    assert {name: json.loads(text) for name, text in round_trip.items() if text is not None} == {
        name: json.loads(text) for name, text in stored.items()
    }


def user_update(data: bytes) -> None:
    """A body is a change, or pydantic says why not; each change is spelled so that Redis takes it."""
    try:
        body = records.parse_update(data)
    except ValidationError as error:
        json.dumps(records.problems(error), allow_nan=False).encode()
        return
    _check_changes(body)


def _check_changes(body: records.UserFields) -> None:
    for change in changes_of(body):
        assert pack(*change)
        assert "\0" not in change[1]
    if body.user_id is not None:
        check_user_key(body.user_id)


def check_user_key(user_id: str) -> None:
    """No id closes the hash tag early, or makes another user's key."""
    record = keys.user_keys(user_id).record
    inside = record.removeprefix(b"lw:{u:").removesuffix(b"}")
    assert record.isascii()
    assert b"{" not in inside
    assert b"}" not in inside


def api_key(data: bytes) -> None:
    """A body is a key or a change of one, or pydantic says why not; the row reads back as it was written."""
    source = Input(data)
    kind, text = source.choice(_KEY_BODIES), source.rest()
    try:
        body: key_records.KeyFields = kind.model_validate_json(text)
    except ValidationError as error:
        json.dumps(records.problems(error), allow_nan=False).encode()
        return
    changed = key_records.changed_key(_KEY, body, _NOW_MS)
    row = key_records.stored_key(changed)
    assert msgspec.json.decode(row) == json.loads(row)
    read = key_records.key_from_stored(
        row,
        token=changed.token,
        user_id=changed.user_id,
        spend_nanos=changed.spend_nanos,
        blocked=changed.blocked,
        expires_at_ms=changed.expires_at_ms,
    )
    assert read == changed
    json.dumps(key_records.key_json(read), allow_nan=False).encode()


def duration(data: bytes) -> None:
    """A text is a duration, or refused; the period that holds a moment ends after it."""
    source = Input(data)
    anchor_ms, now_ms = source.byte() << 33, source.byte() << 34
    text = source.rest().decode("utf-8", "replace")
    try:
        length = durations.parse(text)
    except InvalidValueError:
        return
    assert length.text == text
    assert durations.encode(length).isascii()
    end_ms = durations.period_end_ms(length, anchor_ms, now_ms)
    assert end_ms > max(anchor_ms, now_ms)
    if length.length_ms and now_ms >= anchor_ms:
        assert end_ms - length.length_ms <= now_ms


def amount(data: bytes) -> None:
    """A text is an amount, or refused; it is shown as it was read."""
    text = data.decode("utf-8", "replace")
    readings: list[str | float] = [text]
    try:
        number = json.loads(text)
        readings += [number] if isinstance(number, int | float) else []
    except (ValueError, RecursionError):
        pass
    for reading in readings:
        try:
            nanos = money.usd_to_nanos(reading)
        except InvalidValueError as refused:
            _check_short(refused)
            continue
        assert 0 <= nanos <= money.MAX_USD * money.NANOS_PER_USD
        assert money.usd_to_nanos(money.format_usd(nanos)) == nanos
        if nanos <= 2**23 * money.NANOS_PER_USD:
            assert money.usd_to_nanos(money.nanos_to_usd(nanos)) == nanos


def smtp_url(data: bytes) -> None:
    """A text is a mail server, or refused in words that hold none of it."""
    text = data.decode("utf-8", "replace")
    try:
        server = mail.read_smtp_url(text)
    except InvalidValueError as refused:
        _check_short(refused)
        return
    assert server.host
    assert 0 < server.port < 65536
    assert (server.user is None) == (server.password is None)
    assert server.sender.addr_spec.isprintable()
    mail.Mailer(server)._message(mail.Mail(to="a@example.com", subject="s", text="t", html="h")).as_bytes()


def _check_short(refused: InvalidValueError) -> None:
    assert len(str(refused)) < 300, "it repeats the value"


def address(data: bytes) -> None:
    """A text is an address that a mail can be headed with, or refused."""
    text = data.decode("utf-8", "replace")
    try:
        found = mail.read_address(text)
    except InvalidValueError:
        return
    assert found.domain.isascii()
    assert not any(character.isspace() for character in found.addr_spec)


def command(data: bytes) -> None:
    """A command packed ahead and filled is what the client library packs of it."""
    source = Input(data)
    kinds = [source.byte() % 3 for _ in range(source.byte() % 8)]
    parts: list[bytes | Blank] = []
    values: list[int | bytes] = []
    plain: list[bytes] = []
    for kind in kinds:
        text = source.line()
        if kind == 0:
            parts.append(text)
            plain.append(text)
        elif kind == 1:
            parts.append(Blank.TEXT)
            values += [len(text), text]
            plain.append(text)
        else:
            number = source.choice(_TEMPLATE_NUMBERS)
            parts.append(Blank.NUMBER)
            values.append(number)
            plain.append(b"%017d" % number)
    assert template(b"EVALSHA", *parts) % tuple(values) == pack(b"EVALSHA", *plain)
