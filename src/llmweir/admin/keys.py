"""The routes of API keys: make, change, read, block and delete them; users their own, an admin all."""

from __future__ import annotations

import asyncio

from pydantic import SecretStr

from llmweir.admin.access import Right
from llmweir.admin.errors import AdminError
from llmweir.admin.key_requests import AboutKey, KeySearch, NamedKey, NamedKeys
from llmweir.admin.key_rights import check_escape, check_key_user, check_life, check_limits, check_models, check_number
from llmweir.admin.key_shapes import DeletedKeys, KeyInfo, KeyList, KeyRow, MintedRow, key_row, minted_row
from llmweir.admin.lists import pages_of
from llmweir.admin.routes import AdminRoute, Answer, Call, sent
from llmweir.engine.api_keys import ApiKeys, MintedKey
from llmweir.engine.key_directory import KeyQuery
from llmweir.engine.users import Users
from llmweir.errors import NotFoundError
from llmweir.key_records import KeyFields, KeyRecord, KeyRegeneration, KeyUpdate, NewKey
from llmweir.records import NewUser


class KeyRoutes:
    """API keys, one call a key or a list of them."""

    def __init__(self, users: Users, keys: ApiKeys) -> None:
        self._users = users
        self._keys = keys

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """The rows of the table."""
        return (*self._making(), *self._changing(), *self._reading())

    def _making(self) -> tuple[AdminRoute, ...]:
        return (
            AdminRoute(
                method="POST",
                path="/key/generate",
                right=Right.OWN_KEYS,
                handle=self.generate,
                body=NewKey,
                answer=MintedRow,
                refuses=(404, 409),
                summary="Makes a key, shown this once; for a new user where an admin names none",
            ),
            AdminRoute(
                method="POST",
                path="/key/{key}/regenerate",
                right=Right.OWN_KEYS,
                handle=self.regenerate,
                body=KeyRegeneration,
                body_optional=True,
                answer=MintedRow,
                refuses=(404, 409),
                summary="Puts a new key, shown this once, in the place of an old one, which is dead at once",
            ),
        )

    def _changing(self) -> tuple[AdminRoute, ...]:
        return (
            AdminRoute(
                method="POST",
                path="/key/update",
                right=Right.OWN_KEYS,
                handle=self.update,
                body=KeyUpdate,
                answer=KeyRow,
                refuses=(404, 409),
                summary="Changes the fields that are sent, all or none; null clears one",
            ),
            AdminRoute(
                method="POST",
                path="/key/block",
                right=Right.OWN_KEYS,
                handle=self.block,
                body=NamedKey,
                answer=KeyRow,
                refuses=(404,),
                summary="Blocks a key from its next request on",
            ),
            AdminRoute(
                method="POST",
                path="/key/unblock",
                right=Right.OWN_KEYS,
                handle=self.unblock,
                body=NamedKey,
                answer=KeyRow,
                refuses=(404,),
                summary="Lets a blocked key in again",
            ),
            AdminRoute(
                method="POST",
                path="/key/delete",
                right=Right.OWN_KEYS,
                handle=self.delete,
                body=NamedKeys,
                answer=DeletedKeys,
                refuses=(404,),
                summary="Deletes keys, all or none",
            ),
        )

    def _reading(self) -> tuple[AdminRoute, ...]:
        return (
            AdminRoute(
                method="GET",
                path="/key/info",
                right=Right.OWN_READ,
                handle=self.info,
                query=AboutKey,
                answer=KeyInfo,
                refuses=(400, 404),
                summary="A key's row; the presented key's where none is named",
            ),
            AdminRoute(
                method="GET",
                path="/key/list",
                right=Right.OWN_READ,
                handle=self.list_keys,
                query=KeySearch,
                answer=KeyList,
                summary="A page of the keys that you may see",
            ),
        )

    async def generate(self, call: Call) -> Answer:
        """Makes a key; an admin who names no user gets a new one made, everybody else a key of their own."""
        body, identity = sent(NewKey, call.body), call.identity
        check_limits(identity, body)
        check_escape(identity)
        check_number(identity)
        if body.user_id is None and identity.is_admin:
            return Answer(minted_row(await self._mint_for_new_user(body)))
        user_id = identity.whose(body.user_id, Right.WRITE_ALL)
        return Answer(minted_row(await self._keys.mint(user_id, body)))

    async def regenerate(self, call: Call) -> Answer:
        """Puts a new key in the place of an old one, with what changes along with it."""
        body = sent(KeyRegeneration, call.body) if call.body is not None else KeyRegeneration()
        record = await self._keys.find(call.path["key"])
        check_key_user(call.identity, record)
        check_escape(call.identity, record)
        _check_change(call, record, body)
        if body.model_fields_set - {"new_key"}:  # first, for this may be refused, and the old key must live then
            record = await self._keys.update(record, body)
        secret = body.new_key.get_secret_value() if body.new_key is not None else None
        return Answer(minted_row(await self._keys.regenerate(record, secret=secret)))

    async def update(self, call: Call) -> Answer:
        """Changes a key."""
        body = sent(KeyUpdate, call.body)
        record = await self._own(call, body.key, body.key_alias)
        _check_change(call, record, body)
        return Answer(key_row(await self._keys.update(record, body)))

    async def block(self, call: Call) -> Answer:
        """Blocks a key."""
        return await self._set_blocked(call, blocked=True)

    async def unblock(self, call: Call) -> Answer:
        """Unblocks a key."""
        return await self._set_blocked(call, blocked=False)

    async def delete(self, call: Call) -> Answer:
        """Deletes keys; where one of them is unknown, or another user's, none is deleted."""
        body = sent(NamedKeys, call.body)
        names = [key.get_secret_value() for key in body.keys or []]
        aliases = body.key_aliases or []
        records = await asyncio.gather(*map(self._listed, names), *map(self._listed_alias, aliases))
        for record in records:
            check_key_user(call.identity, record)
        await self._keys.delete(list({record.token: record for record in records}.values()))
        return Answer({"deleted_keys": [*names, *aliases]})

    async def info(self, call: Call) -> Answer:
        """A key's row, under the name that it was asked for by."""
        asked = sent(AboutKey, call.query).key
        if asked is not None:
            record = await self._keys.find(asked.get_secret_value())
            check_key_user(call.identity, record, Right.READ_ALL)
            return Answer({"key": asked.get_secret_value(), "info": key_row(record)})
        presented = call.identity.key
        if presented is None:
            raise AdminError(400, "The master key has no row of its own; name a key.", "key")
        return Answer({"key": presented.token, "info": key_row(presented)})

    async def list_keys(self, call: Call) -> Answer:
        """A page of keys: of all users for those who may read them all, else of the caller's own."""
        search, identity = sent(KeySearch, call.query), call.identity
        user_id = search.user_id if identity.reads_all else identity.whose(search.user_id)
        query = KeyQuery(
            page=search.page, size=search.size, user_id=user_id, key_alias=search.key_alias, team_id=search.team_id
        )
        found = await self._keys.page(query)
        shown = [key_row(record) if search.return_full_object else record.token for record in found.records]
        return Answer(
            {
                "keys": shown,
                "total_count": found.total,
                "current_page": search.page,
                "total_pages": pages_of(found.total, search.size),
            }
        )

    async def _mint_for_new_user(self, body: NewKey) -> MintedKey:
        """Makes a user and a key; where the key cannot be made there is no user either."""
        user_id = await self._users.create(NewUser())
        try:
            return await self._keys.mint(user_id, body)
        except Exception:
            await self._users.delete([user_id])
            raise

    async def _own(self, call: Call, key: SecretStr | None, alias: str | None) -> KeyRecord:
        if key is not None:
            record = await self._keys.find(key.get_secret_value())
        else:
            assert alias is not None  # noqa: S101 (the bodies see to it)
            record = await self._keys.find_alias(alias)
        check_key_user(call.identity, record)
        return record

    async def _set_blocked(self, call: Call, *, blocked: bool) -> Answer:
        body = sent(NamedKey, call.body)
        record = await self._own(call, body.key, body.key_alias)
        return Answer(key_row(await self._keys.set_blocked(record, blocked)))

    async def _listed(self, name: str) -> KeyRecord:
        try:
            return await self._keys.find(name)
        except NotFoundError as error:
            raise NotFoundError(str(error), param="keys") from error

    async def _listed_alias(self, alias: str) -> KeyRecord:
        try:
            return await self._keys.find_alias(alias)
        except NotFoundError as error:
            raise NotFoundError(str(error), param="key_aliases") from error


def _check_change(call: Call, record: KeyRecord, body: KeyFields) -> None:
    check_limits(call.identity, body)
    check_models(call.identity, record, body)
    check_life(call.identity, body)
    if body.user_id is not None and body.user_id != record.user_id:
        raise AdminError(422, "A key stays with its user; make one for the other user instead.", "user_id")
