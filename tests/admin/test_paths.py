"""Which paths go to the admin API, and which to the gate."""

from __future__ import annotations

import pytest

from llmweir.admin.access import Right
from llmweir.admin.paths import AdminPaths
from llmweir.admin.routes import AdminRoute, Answer, Call


async def nothing(_: Call) -> Answer:
    return Answer(None)


def route(path: str) -> AdminRoute:
    return AdminRoute(method="GET", path=path, right=Right.OPEN, handle=nothing, summary="")


@pytest.mark.parametrize(
    ("path", "is_admin"),
    [
        ("/user/new", True),
        ("/user/new/", False),
        ("/user", False),
        ("/key/sk-1/regenerate", True),
        ("/key/a/b/regenerate", True),
        ("/key/list", True),
        ("/key//regenerate", False),
        ("/key/regenerate", False),
        ("/key/sk-1", False),
        ("/invite/token", True),
        ("/invite/", False),
        ("/invite", False),
        ("/v1/chat/completions", False),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/llmweir"])
def test_a_path_is_the_admin_apis_where_the_table_has_it(path: str, is_admin: bool, prefix: str) -> None:
    table = map(route, ("/user/new", "/key/list", "/key/{key}/regenerate", "/invite/{token}"))
    paths = AdminPaths(list(table), prefix)
    assert (f"{prefix}{path}" in paths) == is_admin
    assert ("/other" + path) not in paths
