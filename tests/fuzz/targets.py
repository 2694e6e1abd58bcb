"""The table of the fuzz targets: each takes any bytes, and raises only where it has found something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from tests.fuzz import answers, front_door, requests, values

Target = Callable[[bytes], None]

CORPUS = Path(__file__).parent / "corpus"
"""A folder a target: inputs worth keeping, and those that once found something (`found-...`)."""

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "json_request": requests.json_request,
        "json_value": requests.json_value,
        "form_request": requests.form_request,
        "head": requests.head,
        "path": requests.path,
        "answer": answers.answer,
        "stream": answers.stream,
        "sse": answers.sse,
        "sse_bounded": answers.sse_bounded,
        "usage_filter": answers.usage_filter,
        "new_user": values.new_user,
        "user_update": values.user_update,
        "api_key": values.api_key,
        "duration": values.duration,
        "amount": values.amount,
        "smtp_url": values.smtp_url,
        "address": values.address,
        "command": values.command,
        "connection": front_door.connection,
    }
)
