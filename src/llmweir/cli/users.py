"""`llmweir user`: makes, changes, shows and deletes the users of a running server."""

from __future__ import annotations

from typing import Any, get_args

import click
from rich.console import RenderableType

from llmweir.cli.asking import confirm
from llmweir.cli.field_options import with_fields
from llmweir.cli.pages import Listing, Paging, paged, show_pages
from llmweir.cli.param_types import TEXT
from llmweir.cli.plain_text import counted, printable
from llmweir.cli.session import AdminGroup, Session, connected
from llmweir.cli.tables import key_table, minted_lines, usage_table, user_panel, user_table
from llmweir.record_fields import UserRole
from llmweir.records import NewUser, UserUpdate


@click.group(cls=AdminGroup, short_help="Make, change, show and delete users of a running server.")
def user() -> None:
    """Make, change, show and delete the users of a running server.

    The server is --server or LLMWEIR_SERVER, the key --key or LLMWEIR_MASTER_KEY. Exit codes: 0 done, 1 refused,
    2 usage, 3 not found, 4 taken, 5 not allowed, 6 no server that can answer, 130 interrupted.
    """


@user.command(short_help="Make a user, and a key.")
@click.argument("name", type=TEXT, required=False, metavar="[USER_ID]")
@with_fields(NewUser)
@connected
def new(session: Session, name: str | None, body: dict[str, Any]) -> None:
    """Make a user, with an id that is made up where none is given, and an API key, which is shown this once."""
    session.show(session.remote.post("/user/new", _named(body, name)), _new_user)


@user.command(short_help="Change a user.")
@click.argument("name", type=TEXT, required=False, metavar="[USER_ID]")
@with_fields(UserUpdate, clears=True)
@connected
def update(session: Session, name: str | None, body: dict[str, Any]) -> None:
    """Change the fields that are given, all or none; it binds the very next request.

    Without an id the user is found by --user-email. Lists and dicts are replaced whole.
    """
    body = _named(body, name)
    by = next((field for field in ("user_id", "user_email") if body.get(field)), None)
    if by is None:
        raise click.UsageError("Name the user, by id or by --user-email.")
    if body.keys() == {by}:
        raise click.UsageError("There is nothing to change; see --help for what can be.")
    session.show(session.remote.post("/user/update", body), _updated_user)


@user.command(short_help="Show a user, with keys and what is spent.")
@click.argument("user_id", type=TEXT, required=False)
@connected
def info(session: Session, user_id: str | None) -> None:
    """Show a user: the record, the keys, what is spent in this period. Without an id: whose key it is."""
    session.show(session.remote.get("/user/info", {"user_id": user_id}), _user_info)


@user.command(short_help="Show where a user's limits stand.")
@click.argument("user_id", type=TEXT, required=False)
@connected
def usage(session: Session, user_id: str | None) -> None:
    """Show where each limit of a user stands now; looking counts nothing. Without an id: whose key it is."""
    session.show(
        session.remote.get("/user/usage", {"user_id": user_id}), lambda answer: [usage_table(answer.get("limits", []))]
    )


@user.command("list", short_help="List users.")
@click.option("--role", type=click.Choice(get_args(UserRole)), metavar="NAME", help="Users of this role.")
@click.option("--user-id", "user_ids", type=TEXT, multiple=True, metavar="TEXT", help="This user. Repeatable.")
@click.option("--user-email", type=TEXT, metavar="TEXT", help="Users with this in their email address.")
@click.option("--search", type=TEXT, metavar="TEXT", help="Users with this in their id, email or alias.")
@click.option("--team", type=TEXT, metavar="TEXT", help="Users in this team.")
@click.option(
    "--sort-by", type=TEXT, metavar="FIELD", help="What to sort by: created_at (default), user_id, spend, ..."
)
@click.option("--sort-order", type=click.Choice(["asc", "desc"]), help="Smallest first, or greatest (default).")
@paged
@connected
def list_users(session: Session, paging: Paging, user_ids: tuple[str, ...], **query: str | None) -> None:
    """List users, a page at a time or --all."""
    listing = Listing("/user/list", "user", "page_size", "users", "total", _user_rows)
    show_pages(session, listing, paging, {**query, "user_ids": user_ids or None})


@user.command(short_help="Delete users and their keys.")
@click.argument("user_ids", type=TEXT, nargs=-1, required=True, metavar="USER_ID...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected
def delete(session: Session, user_ids: tuple[str, ...], yes: bool) -> None:
    """Delete users and their keys, all or none; what they have used stays in the reports."""
    confirm(f"Delete {_names(user_ids)} and all their keys?", is_sure=yes)
    answer = session.remote.post("/user/delete", {"user_ids": user_ids})
    session.say(answer, f"Deleted {counted(len(set(user_ids)), 'user')}.")


@user.command(short_help="Refuse all requests of users.")
@click.argument("user_ids", type=TEXT, nargs=-1, required=True, metavar="USER_ID...")
@connected
def block(session: Session, user_ids: tuple[str, ...]) -> None:
    """Refuse all requests of users from now on, all or none of them."""
    session.say(session.remote.post("/user/block", {"user_ids": user_ids}), f"Blocked {_names(user_ids)}.")


@user.command(short_help="Let blocked users in again.")
@click.argument("user_ids", type=TEXT, nargs=-1, required=True, metavar="USER_ID...")
@connected
def unblock(session: Session, user_ids: tuple[str, ...]) -> None:
    """Let blocked users in again, all or none of them."""
    session.say(session.remote.post("/user/unblock", {"user_ids": user_ids}), f"Unblocked {_names(user_ids)}.")


def _named(body: dict[str, Any], name: str | None) -> dict[str, Any]:
    """The body with the user's id in it, given behind the command or as an option."""
    if name is None:
        return body
    if body.get("user_id", name) != name:
        raise click.UsageError("The id of the user is given twice.")
    return {**body, "user_id": name}


def _names(names: tuple[str, ...]) -> str:
    return printable(", ".join(names))


def _new_user(answer: dict[str, Any]) -> list[RenderableType]:
    return [user_panel(answer), *minted_lines(answer)]


def _updated_user(answer: dict[str, Any]) -> list[RenderableType]:
    return [user_panel(answer.get("data") or {}), *minted_lines(answer)]


def _user_info(answer: dict[str, Any]) -> list[RenderableType]:
    return [user_panel(answer.get("user_info") or {}), *key_table(answer.get("keys") or [])]


def _user_rows(rows: list[Any], is_first: bool) -> list[RenderableType]:
    return [user_table(rows, has_head=is_first)]
