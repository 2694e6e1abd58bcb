"""Hashes passwords (argon2id), off the event loop."""

from __future__ import annotations

import asyncio

from argon2 import PasswordHasher
from pydantic import SecretStr

_AT_ONCE = 2


class Passwords:
    """Hashes passwords; only a few at once, since each takes 64 MiB for a moment."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def hash(self, password: SecretStr) -> str:
        """Hashes a password as the store keeps it."""
        async with self._turns:
            return await asyncio.to_thread(self._hasher.hash, password.get_secret_value())
