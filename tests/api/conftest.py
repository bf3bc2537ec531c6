"""A fixture that every test of the API uses."""

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from serve.api import openapi_schema


@pytest.fixture(scope="session", autouse=True)
def one_document() -> Iterator[None]:
    """Let apps with the same routes share FastAPI's part of their OpenAPI documents: it takes 0.4 s for each app."""
    write, written = openapi_schema.get_openapi, dict[Any, bytes]()

    def shared(**given: Any) -> Any:
        key = tuple((route.path, *sorted(getattr(route, "methods", None) or ())) for route in given["routes"])
        if key not in written:
            written[key] = pickle.dumps(write(**given))
        return pickle.loads(written[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openapi_schema, "get_openapi", shared)
        yield
