"""Makes and changes users with everything that belongs to one call: the key, the password, the invitation."""

from __future__ import annotations

from collections.abc import Sequence

from llmweir.admin.errors import AdminError
from llmweir.admin.invites import Invites
from llmweir.admin.passwords import Passwords
from llmweir.engine.api_keys import ApiKeys, MintedKey
from llmweir.engine.users import User, Users
from llmweir.errors import ConflictError, NotFoundError
from llmweir.key_records import KeyRecord, KeyUpdate, NewKey
from llmweir.records import NewUser, UserFields, UserUpdate


class UserChanges:
    """What `/user/new` and `/user/update` do, for one user at a time."""

    def __init__(self, users: Users, keys: ApiKeys, invites: Invites, passwords: Passwords) -> None:
        self._users = users
        self._keys = keys
        self._invites = invites
        self._passwords = passwords

    async def create(self, body: NewUser) -> tuple[User, MintedKey | None]:
        """Makes a user, and a key unless told not to; where the key cannot be made there is no user either.

        Raises AdminError (400) for an invitation that cannot be sent, and ConflictError.
        """
        self._check_invitation(body, body.user_email)
        if body.mints_key:
            await self._check_alias(body, None)
        user_id = await self._users.create(body, password_hash=await self._hashed(body))
        await self._invite(body, await self._known(user_id))  # before the key, which is shown only where all went well
        minted = await self._first_key(user_id, body) if body.mints_key else None
        return await self._known(user_id), minted

    async def update(self, body: UserUpdate) -> tuple[User, MintedKey | None]:
        """Changes the fields that were sent, and the user's keys as the body asks.

        Raises AdminError (400) for an invitation that cannot be sent, and (422) where it is unclear which key is
        meant; NotFoundError and ConflictError.
        """
        before = await self._users.find(body)
        self._check_invitation(body, _address_after(body, before))
        self._check_key(body, before)
        await self._check_alias(body, None if _mints(body, before) else before.keys)
        user_id = await self._users.update(body, password_hash=await self._hashed(body))
        await self._invite(body, await self._known(user_id))
        minted = await self._change_keys(body, before)
        return await self._known(user_id), minted

    async def _first_key(self, user_id: str, body: NewUser) -> MintedKey:
        try:
            return await self._keys.mint(user_id, _new_key(body))
        except Exception:  # the alias was taken a moment ago, or the store went away: then as far as it lets us
            await self._users.delete([user_id])
            raise

    async def _change_keys(self, body: UserUpdate, user: User) -> MintedKey | None:
        if _mints(body, user):
            return await self._keys.mint(user.record.user_id, _new_key(body))
        if _means_a_key(body):
            await self._keys.update(user.keys[0], KeyUpdate.model_validate({"key": user.keys[0].token, **_own(body)}))
        return None

    def _check_key(self, body: UserUpdate, user: User) -> None:
        if _means_a_key(body) and not body.auto_create_key and len(user.keys) != 1:
            param = "key_alias" if body.key_alias is not None else "duration"
            message = "The user has not exactly one key that this could change; see /key/update, or auto_create_key."
            raise AdminError(422, message, param)

    async def _check_alias(self, body: UserFields, owners: Sequence[KeyRecord] | None) -> None:
        """Refuses an alias that is taken, before anything is changed; `owners` are the keys that may have it."""
        if body.key_alias is None:
            return
        try:
            found = await self._keys.find_alias(body.key_alias)
        except NotFoundError:
            return
        if found.token not in {record.token for record in owners or ()}:
            raise ConflictError("There is a key with this alias already.", param="key_alias")

    def _check_invitation(self, body: UserFields, address: str | None) -> None:
        if body.send_invite_email:
            self._invites.check(address)

    async def _invite(self, body: UserFields, user: User) -> None:
        record = user.record
        if body.send_invite_email and record.user_email is not None:
            await self._invites.send(record.user_id, record.user_email, record.user_alias)

    async def _hashed(self, body: UserFields) -> str | None:
        return None if body.password is None else await self._passwords.hash(body.password)

    async def _known(self, user_id: str) -> User:
        user = await self._users.get(user_id)
        if user is None:
            raise NotFoundError("There is no such user.", param="user_id")
        return user


def _means_a_key(body: UserUpdate) -> bool:
    return body.key_alias is not None or body.duration is not None


def _mints(body: UserUpdate, user: User) -> bool:
    return bool(body.auto_create_key) and (_means_a_key(body) or not user.keys)


def _address_after(body: UserUpdate, user: User) -> str | None:
    """The address that the record has once it is updated; a body without an id only finds its user by it."""
    changes = body.user_id is not None and "user_email" in body.model_fields_set
    return body.user_email if changes else user.record.user_email


def _own(body: UserFields) -> dict[str, str]:
    sent = {"key_alias": body.key_alias, "duration": body.duration}
    return {name: value for name, value in sent.items() if value is not None}


def _new_key(body: UserFields) -> NewKey:
    return NewKey.model_validate(_own(body))
