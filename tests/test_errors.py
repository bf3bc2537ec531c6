"""Errors carry what a client needs, also between processes."""

import pickle

import pytest

import deployments.routing.pool  # noqa: F401  errors of its own
from serve.api.error_responses import error_response
from serve.errors import ModelError, NotFound, Overloaded, QuotaUsedUp, ServeError, TooMany


def kinds(kind: type[ServeError] = ServeError) -> list[type[ServeError]]:
    return [kind, *(deeper for direct in kind.__subclasses__() for deeper in kinds(direct))]


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.status in (429, 503) and kind is not QuotaUsedUp])
def test_errors_that_may_pass_say_when_to_try_again(kind: type[ServeError]) -> None:
    assert kind.retry_after_s


def test_response_to_a_lasting_error_has_no_retry_after() -> None:
    assert "retry-after" not in error_response(NotFound("no")).headers


@pytest.mark.parametrize(
    "error",
    [
        TooMany("wait", retry_after_s=31),
        Overloaded("full", param="image"),
        ModelError("broken", code="engine_error"),
    ],
)
def test_pickled_error_keeps_every_field(error: ServeError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and vars(copy) == vars(error)
    assert error_response(copy).headers["retry-after"] == str(error.retry_after_s)
