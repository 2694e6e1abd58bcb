"""What each error that a handler raises is answered with."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llmweir.admin.errors import AdminError, as_admin_error
from llmweir.engine.wire import ReplyError
from llmweir.errors import ConflictError, NotFoundError, StoreUnavailableError, UnreadableRequestError
from llmweir.records import UserUpdate


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as raised:
        UserUpdate.model_validate({"user_id": "ana", "rpm_limit": "sk-secret"})
    return raised.value


@pytest.mark.parametrize(
    ("error", "status", "kind", "param"),
    [
        pytest.param(AdminError(418, "x", "y", "teapot"), 418, "teapot", "y", id="itself"),
        pytest.param(ConflictError("x", param="key"), 409, "invalid_request_error", "key", id="conflict"),
        pytest.param(NotFoundError("x", param="key"), 404, "invalid_request_error", "key", id="not found"),
        pytest.param(UnreadableRequestError(400, "a", "x"), 400, "invalid_request_error", None, id="unreadable"),
        pytest.param(StoreUnavailableError("x"), 503, "server_error", None, id="store away"),
        pytest.param(ReplyError("WRONGTYPE sk-secret"), 503, "server_error", None, id="store refuses"),
    ],
)
def test_an_error_has_its_status_kind_and_field(error: Exception, status: int, kind: str, param: str | None) -> None:
    refused = as_admin_error(error)
    assert refused is not None
    assert (refused.status, refused.type, refused.param) == (status, kind, param)
    assert refused.content == {"error": {"message": refused.message, "type": kind, "param": param, "code": str(status)}}
    assert "sk-secret" not in refused.message


def test_what_is_not_valid_is_listed_without_the_values() -> None:
    refused = as_admin_error(invalid())
    assert refused is not None
    assert refused.status == 422
    assert [problem["loc"] for problem in refused.details or []] == [["body", "rpm_limit"]]
    assert refused.content == {"detail": refused.details}
    assert "sk-secret" not in str(refused.content)


def test_a_fault_of_the_program_is_none_of_them() -> None:
    assert as_admin_error(RuntimeError("x")) is None
