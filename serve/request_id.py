"""Context of the current request: its id, the same in headers, bodies, logs and engines, and its cache salt."""

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Set where a request enters a process; its tasks and threads inherit it."""

CACHE_SALT: ContextVar[str] = ContextVar("cache_salt", default="")
"""Requests with different salts share no engine cache entries, so that a client cannot learn from response times what
another has sent. Empty where that is not configured."""
