"""Whom is being worked for: the request's id, one name in a reply's header and body, in logs and in engines, and what
keeps its caches apart from others'."""

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Set where a request enters a process; tasks and threads that work for it inherit it."""

CACHE_SALT: ContextVar[str] = ContextVar("cache_salt", default="")
"""Requests of different salts share nothing in an engine's caches, so that none can time what another has asked. Empty
where that is not configured."""
