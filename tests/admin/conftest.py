"""What the tests of the admin API share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from tests.admin.serving import api_of, client_of

from llmweir.engine.link import Link
from llmweir.engine.users import Users


@pytest.fixture
async def api(users: Users, link: Link) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client with the master key."""
    async with client_of(api_of(users, link)) as client:
        yield client
