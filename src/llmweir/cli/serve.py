"""`llmweir serve`: stands in front of an upstream; every setting is a flag."""

from __future__ import annotations

import contextlib
import logging
import logging.config
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import click
import uvicorn
from pydantic import JsonValue
from uvicorn.supervisors.multiprocess import Multiprocess

from llmweir import __version__
from llmweir.cli.front_door import FrontDoorConfig
from llmweir.cli.logs import log_config
from llmweir.cli.sockets import bind
from llmweir.engine.embedded import EmbeddedValkey
from llmweir.engine.redis_url import read_redis_url
from llmweir.errors import InvalidValueError, StoreUnavailableError
from llmweir.settings import ENV_PREFIX, Settings, describe_settings
from llmweir.wiring import Weir, front

_KEEP_ALIVE_S = 65
_log = logging.getLogger("llmweir.serve")


class SettingsError(click.ClickException):
    """A setting is not valid."""

    exit_code = 2


def with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command every setting as a flag; it is called with a text, or None, for each."""
    for setting in reversed(describe_settings()):
        text = setting.description
        if setting.default is not None:
            text = f"{text} [default: {_as_given(setting.default)}]"
        command = click.option(setting.flag, setting.name, default=None, metavar="VALUE", help=text)(command)
    return command


def _as_given(default: JsonValue) -> str:
    """A default as one would write it behind its flag."""
    if isinstance(default, list):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


@click.command(
    context_settings={"max_content_width": 110}, short_help="Stand in front of a gateway or provider: enforce limits."
)
@with_setting_flags
def serve(**flags: str | None) -> None:
    """Stand in front of an LLM gateway or provider and hold its callers to their limits.

    Every flag is also an environment variable (LLMWEIR_UPSTREAM for --upstream) and a key of llmweir.toml; a flag wins
    over a variable, a variable over the file. Secrets are better off in those: flags show in the list of processes.
    """
    settings = _settings_of(flags)
    listener = bind(settings.host, settings.port)
    logging.config.dictConfig(log_config())
    # Before a server is there to drain; uvicorn raises the signal once more when it has drained.
    signal.signal(signal.SIGTERM, _end)
    # This process holds a share in the bundled Valkey until the last worker is gone.
    with listener, _bundled_valkey(settings):
        _log_start(settings, listener)
        _run(_config_of(settings), listener)


def app() -> Weir:
    """The app of one worker process, from its environment."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # uvicorn takes signals by now
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    return front(Settings())


class Workers(Multiprocess):
    """uvicorn's worker processes; a dead one is replaced, and at the end no new connection waits for nobody."""

    was_asked_to_end = False

    def init_processes(self) -> None:
        """Starts the workers; from now on a signal ends this process at once, whatever it waits for."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked_to_end)
        with _without_ctrl_c():
            super().init_processes()

    def _asked_to_end(self, *_: object) -> None:
        # uvicorn would only look at it after its next round, and might take workers that end for dead ones.
        self.was_asked_to_end = True
        self.should_exit.set()

    def keep_subprocess_alive(self) -> None:
        """Replaces workers that have died."""
        before = [process.pid for process in self.processes]
        super().keep_subprocess_alive()
        for old, process in zip(before, self.processes, strict=True):
            if process.pid != old:
                _log.warning("worker_replaced pid=%s new_pid=%s", old, process.pid)

    def terminate_all(self) -> None:
        """Lets the workers drain."""
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def _settings_of(flags: dict[str, str | None]) -> Settings:
    given = {name: value for name, value in flags.items() if value is not None}
    for name in given:
        os.environ.pop(ENV_PREFIX + name.upper(), None)
    given = {name: value for name, value in given.items() if value}
    try:
        settings = Settings(**given)
        front(settings)
    except InvalidValueError as error:
        raise SettingsError(str(error)) from error
    # Worker processes read the environment, so that is where the flags go.
    os.environ.update({ENV_PREFIX + name.upper(): value for name, value in given.items()})
    return settings


def _bundled_valkey(settings: Settings) -> contextlib.AbstractContextManager[object]:
    if settings.redis_url is not None:
        return contextlib.nullcontext()
    try:
        return EmbeddedValkey.start(settings.data_dir, fsync=settings.fsync)
    except StoreUnavailableError as error:
        raise click.ClickException(str(error)) from error


def _log_start(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    store = f"valkey:{settings.data_dir.resolve()}"
    if settings.redis_url is not None:
        store = read_redis_url(settings.redis_url.get_secret_value()).where
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    _log.info(
        "listening url=%s upstream=%s store=%s workers=%d version=%s",
        where, settings.upstream, store, settings.workers, __version__,
    )  # fmt: skip
    if settings.master_key is None:
        _log.warning("no_master_key hint='set LLMWEIR_MASTER_KEY to use the admin API'")


def _config_of(settings: Settings) -> FrontDoorConfig:
    """How uvicorn is to run: nothing of its own in the answers, running requests finish at shutdown."""
    return FrontDoorConfig(
        "llmweir.cli.serve:app",
        factory=True,
        workers=settings.workers,
        max_head_bytes=settings.max_header_bytes,
        head_timeout_s=settings.body_timeout_s,
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        access_log=False,
        log_config=log_config(),
        log_level="error",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )


def _run(config: FrontDoorConfig, listener: socket.socket) -> None:
    """Serves until a signal ends it; raises click's Exit where it did not come so far."""
    if config.workers > 1:
        workers = Workers(config, sockets=[listener])
        workers.run()
        has_served = workers.was_asked_to_end
    else:
        server = uvicorn.Server(config)
        # Not an exception any more: one raised while the server starts can get lost in somebody's clean-up.
        signal.signal(signal.SIGTERM, server.handle_exit)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            server.run(sockets=[listener])
        has_served = server.started
    if not has_served:
        raise click.exceptions.Exit(1)
    _log.info("stopped")


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Holds a SIGINT back; workers that start meanwhile take it once they can (`app`), not as a KeyboardInterrupt."""
    multiprocessing.resource_tracker.ensure_running()  # else the first start does that, and lets signals in again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)


def _end_with(sentinel: Any) -> None:
    """Drains this worker when its parent has died without a word."""
    multiprocessing.connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
