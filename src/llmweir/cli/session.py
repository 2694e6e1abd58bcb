"""What the commands that talk to a running server share: its address, the key, how the answer is shown."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec
from rich.console import Console, RenderableType

from llmweir.cli.asking import ask_secret, is_at_terminal
from llmweir.cli.field_options import Command, with_options
from llmweir.cli.param_types import SERVER
from llmweir.cli.remote import INTERRUPTED, NOT_LLMWEIR, Address, Answer, Remote, UnreachableError

DEFAULT_SERVER = "http://127.0.0.1:8787"
Render = Callable[[dict[str, Any]], list[RenderableType]]


class Session(msgspec.Struct, frozen=True):
    """One command's run: the server, and where and how its answers are shown."""

    remote: Remote
    console: Console
    wants_json: bool

    def show(self, answer: Answer, render: Render) -> None:
        """Prints an answer: as the server wrote it with `--json`, else as `render` puts it for people."""
        if self.wants_json:
            click.echo(answer.text)
        else:
            self.print(*render(content_of(answer)))

    def say(self, answer: Answer, words: str) -> None:
        """Prints an answer that a sentence says better than a table."""
        click.echo(answer.text if self.wants_json else words)

    def print(self, *parts: RenderableType) -> None:
        """Prints for people."""
        for part in parts:
            self.console.print(part, soft_wrap=isinstance(part, str), markup=False)


class AdminGroup(click.Group):
    """A group whose commands end with 130 on Ctrl-C, at a prompt too."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None


def connected(command: Command) -> Command:
    """Gives a command the options of every call of a server; it is called with `session`."""

    @functools.wraps(command)
    def with_session(server: Address, admin_key: str | None, timeout_s: float, wants_json: bool, **given: Any) -> None:
        remote = Remote(server, _key(admin_key), timeout_s)
        command(session=Session(remote, Console(highlight=False), wants_json), **given)

    options = [
        click.option(
            "--server", type=SERVER, metavar="URL", default=DEFAULT_SERVER, envvar="LLMWEIR_SERVER", show_envvar=True,
            show_default=True, help="The running server; with a path where the admin routes lie under one.",
        ),
        click.option(
            "--key", "admin_key", metavar="TEXT", envvar="LLMWEIR_MASTER_KEY", show_envvar=True,
            help="The master key, or a user's; better in the environment. Asked for on a terminal where there is none.",
        ),
        click.option(
            "--timeout", "timeout_s", type=click.FloatRange(0.001, 86_400), metavar="SECONDS", default=30.0,
            show_default=True, help="How long to wait for the server.",
        ),
        click.option("--json", "wants_json", is_flag=True, help="Print the server's JSON as it is."),
    ]  # fmt: skip
    return with_options(with_session, options)


def _key(given: str | None) -> str:
    """The key to call with; raises click.UsageError where there is none, or it fits no header."""
    key = given
    if not key:
        if not is_at_terminal():
            raise click.UsageError("There is no key: set LLMWEIR_MASTER_KEY, or give --key.")
        key = ask_secret("Key")
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise click.UsageError("The key has characters that no key has.")
    return key


def content_of(answer: Answer) -> dict[str, Any]:
    """The members of an answer; raises UnreachableError where it has none."""
    if not isinstance(answer.content, dict):
        raise UnreachableError(NOT_LLMWEIR)
    return answer.content
