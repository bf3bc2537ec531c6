"""Fan-out: chooses models, calls them concurrently and merges their replies. Imports neither HTTP nor an engine.

router.py         Router: plan(...) -> Plan, a checked request; run(plan) -> deltas, replies, then the merged one
model_call.py     ModelCall: one model's part in a request, with its times, text, span and failure
merge_streams.py  merges several streams into one, under one deadline
merge_replies.py  merges several replies into one
judge.py          Judge: a served model that writes the merged reply
route.py          Route: the interface to one model; Status, Deadline
"""

from serve.router.router import Router

__all__ = ["Router"]
