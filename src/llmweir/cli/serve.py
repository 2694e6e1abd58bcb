"""`llmweir serve`: stands in front of an upstream; every setting is a flag."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click
import uvicorn

from llmweir.errors import InvalidValueError
from llmweir.settings import ENV_PREFIX, Settings, describe_settings
from llmweir.wiring import Weir, front

_KEEP_ALIVE_S = 65


def _with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    for setting in reversed(describe_settings()):
        text = setting.description
        if setting.default is not None:
            text = f"{text} [default: {setting.default}]"
        command = click.option(setting.flag, setting.name, default=None, metavar="VALUE", help=text)(command)
    return command


@click.command(context_settings={"max_content_width": 110})
@_with_setting_flags
def serve(**flags: str | None) -> None:
    """Stand in front of an LLM gateway or provider and hold its callers to their limits.

    Every flag is also an environment variable (LLMWEIR_UPSTREAM for --upstream) and a key of llmweir.toml.
    """
    # Worker processes read the environment, so that is where the flags go.
    os.environ.update({ENV_PREFIX + name.upper(): value for name, value in flags.items() if value is not None})
    try:
        settings = Settings()
        front(settings)
    except InvalidValueError as error:
        raise click.ClickException(str(error)) from error
    uvicorn.run("llmweir.cli.serve:app", factory=True, workers=settings.workers, **server_options(settings))


def app() -> Weir:
    """The app of one worker process, from its environment."""
    return front(Settings())


def server_options(settings: Settings) -> dict[str, Any]:
    """How uvicorn is to run: nothing of its own in the answers, running requests finish at shutdown."""
    return {
        "host": settings.host,
        "port": settings.port,
        "http": "httptools",
        "ws": "none",
        "server_header": False,
        "date_header": False,
        "access_log": False,
        "timeout_keep_alive": _KEEP_ALIVE_S,
        "timeout_graceful_shutdown": int(settings.drain_timeout_s),
    }
