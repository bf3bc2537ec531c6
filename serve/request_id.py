"""The id of the request that is being worked for: one name in a reply's header and body, in logs and in engines."""

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Set where a request enters a process; tasks and threads that work for it inherit it."""
