"""`llmweir demo`: the whole of llmweir on one machine, with a make-believe model, to try or to watch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging.config
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import aiohttp
import click
import msgspec
import uvicorn
from rich.console import Console
from rich.table import Table

from llmweir.cli.background import running
from llmweir.cli.front_door import FrontDoorConfig
from llmweir.cli.logs import log_config
from llmweir.cli.model import app as model_app
from llmweir.cli.sockets import bind
from llmweir.cli.tour import Place, play
from llmweir.errors import InvalidValueError
from llmweir.settings import Settings
from llmweir.wiring import Weir, front

HOST = "127.0.0.1"
DRAIN_TIMEOUT_S = 2


class DemoUser(msgspec.Struct, frozen=True):
    """A user of the demo: the record, and the limits in words."""

    limits: dict[str, object]
    words: str


USERS = {
    "ana": DemoUser({"rpm_limit": 3}, "3 requests a minute"),
    "ben": DemoUser(
        {"tpm_limit": 3000, "model_max_budget": {"gpt-4o": 0.004}}, "3000 tokens a minute, 0.004 USD on gpt-4o"
    ),
    "cleo": DemoUser({"max_parallel_requests": 1}, "1 request at a time"),
}


@click.command(short_help="Try it on this machine alone, with a make-believe model.")
@click.option("--once", is_flag=True, help="Play a tour on free ports, check each of its steps, and exit.")
@click.option("--port", default=8787, show_default=True, help="Port to listen on.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to keep the data in. Default: a temporary one, removed at the end.",
)
def demo(once: bool, port: int, data_dir: Path | None) -> None:
    """Try llmweir: a bundled store, a make-believe model and three users with limits.

    Needs no API key of any provider and costs nothing.
    """
    console = Console(highlight=False, soft_wrap=True)
    logging.config.dictConfig(log_config("WARNING"))
    signal.signal(signal.SIGTERM, _end)
    with contextlib.ExitStack() as stack:
        gate_listener = stack.enter_context(bind(HOST, 0 if once else port))
        folder = data_dir
        if folder is None or once:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmweir-demo-")))
        place = stack.enter_context(_running_demo(folder, gate_listener))
        if once:
            differing = asyncio.run(play(place, console))
        else:
            differing = 0
            _invite(place, console)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            console.print("\nStopping.")
    if differing:
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def _running_demo(folder: Path, listener: socket.socket) -> Iterator[Place]:
    """Runs model, gate and store, and makes the users."""
    master_key = f"sk-master-{secrets.token_hex(8)}"
    model = uvicorn.Config(
        model_app(), http="httptools", ws="none", lifespan="off", log_config=None, log_level="critical"
    )
    with running(model, bind(HOST, 0)) as upstream:
        gate = FrontDoorConfig(
            _gate(upstream, folder, master_key),
            max_head_bytes=65_536,
            head_timeout_s=30.0,
            ws="none",
            lifespan="on",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            access_log=False,
            log_config=None,
            log_level="error",
            timeout_graceful_shutdown=DRAIN_TIMEOUT_S,
        )
        with running(gate, listener) as url:
            words = {name: user.words for name, user in USERS.items()}
            yield Place(url, upstream, master_key, asyncio.run(_make_users(url, master_key)), words)


def _gate(upstream: str, folder: Path, master_key: str) -> Weir:
    # Every setting is given, so that nothing in the environment changes what the demo shows.
    given = {name: field.default for name, field in Settings.model_fields.items()}
    given |= {"upstream": upstream, "data_dir": folder, "master_key": master_key}
    try:
        return front(Settings(**given))
    except InvalidValueError as error:
        raise click.ClickException(str(error)) from error


async def _make_users(url: str, master_key: str) -> dict[str, str]:
    """Makes the users, or sets the limits of those that an earlier demo left; returns their keys."""
    keys = {}
    headers = {"authorization": f"Bearer {master_key}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        for name, user in USERS.items():
            body = {"user_id": name, "key_alias": f"demo-{secrets.token_hex(4)}", **user.limits}
            async with session.post("/user/new", json=body) as answer:
                status, made = answer.status, await answer.json()
            if status == 409:
                async with session.post("/user/update", json={**body, "auto_create_key": True}) as answer:
                    status, made = answer.status, await answer.json()
            if status != 200:
                raise click.ClickException(f"The user {name} could not be made: {status} {made}")
            keys[name] = made["key"]
    return keys


def _invite(place: Place, console: Console) -> None:
    """Prints what there is to try, ready to paste."""
    table = Table("user", "limits", "API key", title=f"llmweir on {place.url}, in front of a make-believe model")
    for name, key in place.keys.items():
        table.add_row(name, place.words[name], key)
    console.print(table)
    ana, ben, cleo = (place.keys[name] for name in USERS)
    slow, long = "-H 'x-model-delay-ms: 3000'", "-H 'x-model-tokens: 2500'"
    admin = f"-H 'authorization: Bearer {place.master_key}'"
    tries = [
        ("ana: the fourth within a minute is refused", _curl(place, ana, "gpt-4o-mini")),
        ("ben: the second is refused, too many tokens", _curl(place, ben, "gpt-4o-mini", long)),
        ("ben: after the first, gpt-4o's budget is spent", _curl(place, ben, "gpt-4o", "-H 'x-model-tokens: 500'")),
        ("cleo: paste it into two terminals", _curl(place, cleo, "gpt-4o-mini", slow)),
        (
            "raise a limit; it binds the very next request",
            f"""curl -s {place.url}/user/update {admin} -d '{{"user_id": "ana", "rpm_limit": 10}}'""",
        ),
        ("the books", f"curl -s '{place.url}/user/info?user_id=ben' {admin}"),
    ]
    for title, command in tries:
        console.print(f"\n[bold]# {title}[/]")
        console.print(command, markup=False)
    console.print("\n[bold]# or any OpenAI SDK[/]")
    console.print(f'OpenAI(base_url="{place.url}/v1", api_key="{ana}")', markup=False)
    console.print("\nCtrl-C ends it.")


def _curl(place: Place, key: str, model: str, more: str = "") -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    more = f" {more}" if more else ""
    return (
        f"curl -i {place.url}/v1/chat/completions -H 'authorization: Bearer {key}' "
        f"-H 'content-type: application/json'{more} -d '{body}'"
    )


def _end(*_: object) -> NoReturn:
    raise KeyboardInterrupt
