"""How API keys are known without being kept: by their SHA-256."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache

_LONGEST_REMEMBERED = 256


def hash_key(secret: str) -> str:
    """Hashes an API key as the store knows it: SHA-256 in 43 characters, so that a record stays compact."""
    return _remembered_hash(secret) if len(secret) <= _LONGEST_REMEMBERED else _hash(secret)


def token_of_key(secret: str) -> str:
    """The token of an API key, as the admin API shows it: its SHA-256 in hex."""
    return _digest(secret).hex()


def hash_of_token(token: str) -> str:
    """The store's spelling of a token, which is the same SHA-256 in hex."""
    return _short(bytes.fromhex(token))


def token_of_hash(key_hash: str) -> str:
    """The token, as the admin API shows it, of a hash of the store."""
    return urlsafe_b64decode(key_hash + "=").hex()


def _hash(secret: str) -> str:
    return _short(_digest(secret))


_remembered_hash = lru_cache(maxsize=4096)(_hash)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _short(digest: bytes) -> str:
    return urlsafe_b64encode(digest)[:-1].decode()
