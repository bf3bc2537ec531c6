"""Errors that are sent to clients, each with a status, a type and a code (OpenAI's format)."""

from collections.abc import Mapping, Sequence
from typing import Any

RETRY_AFTER_S = 2
"""Default for 429 and 503: without Retry-After, clients such as openai-python retry at once."""


class ServeError(Exception):
    """An error that is sent to the client.

    param: the request field at fault. code: for programs to read. retry_after_s: seconds after which the same request
    may succeed, sent as Retry-After; None where it never will.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after_s: int | None = None

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.code
        self.retry_after_s = retry_after_s if retry_after_s is not None else self.retry_after_s

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the response's JSON: {"error": {"message", "type", "param", "code"}}."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def __reduce__(self) -> tuple[object, ...]:  # keeps keyword arguments when an error is sent to another process
        return _rebuild, (type(self), self.message, self.param, self.code, self.retry_after_s)


def _rebuild(
    kind: type[ServeError], message: str, param: str | None, code: str | None, retry_after_s: int | None
) -> ServeError:
    return kind(message, param=param, code=code, retry_after_s=retry_after_s)


class BadRequest(ServeError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class Unauthorized(ServeError):
    """The request has no API key, or an unknown one."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(ServeError):
    """The key, or a page of another site, may not do this."""

    status = 403
    type = "invalid_request_error"
    code = "forbidden"


class NotFound(ServeError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class TooSlow(ServeError):
    """The request did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class Conflict(ServeError):
    """The request contradicts something that is stored already."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class TooLarge(ServeError):
    status = 413
    type = "invalid_request_error"
    code = "too_large"


class Misdirected(ServeError):
    """The request is for another host than this one."""

    status = 421
    type = "invalid_request_error"
    code = "unknown_host"


class TooMany(ServeError):
    """The rate limit of a key is reached."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry_after_s = RETRY_AFTER_S


class QuotaUsedUp(ServeError):
    """A key has used its tokens of a day or month, as OpenAI says it. Clients do not try again by themselves."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class HeadTooLarge(ServeError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class Unavailable(ServeError):
    """No model could answer; the client may retry later."""

    status = 503
    type = "service_unavailable_error"
    code = "unavailable"
    retry_after_s = RETRY_AFTER_S


class NoAnswer(Unavailable):
    """No model of a fan-out answered. replies: for /v1/tasks, where none can be read: each model's, with its text, as
    {"model", "status", "text", "error"}."""

    replies: Sequence[Mapping[str, Any]] = ()


class ModelError(ServeError):
    """A failure of one model. In a fan-out it fails that model's reply, never the whole request."""

    status = 503
    type = "service_unavailable_error"
    code = "model_error"
    retry_after_s = RETRY_AFTER_S


class Overloaded(ModelError):
    """Too many requests are waiting. This one is refused before any work; the client may retry later."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"

    @classmethod
    def of_model(cls, name: str) -> "Overloaded":
        """Return the error of a model that takes no more requests now."""
        return cls(f"{name} has too many requests waiting.")


class ParseError(ModelError):
    """The model's text is not in the format of its task. The reply keeps the raw text."""

    code = "parse_error"
