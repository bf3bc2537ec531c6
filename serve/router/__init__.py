"""Fan-out: chooses models, calls them concurrently and merges their replies. Imports neither HTTP nor an engine.

plan.py           Plan: a checked request
router.py         Router: plan(...) -> Plan, run(plan) -> deltas and replies as they come, then the merged one
model_call.py     ModelCall: one model's part in a request, with its times, text, span and failure
merge_streams.py  merges several streams into one, under one deadline
merge_replies.py  merges several replies into one
judge.py          Judge: a served model that writes the merged reply
route.py          Route: the interface to one model
"""

from serve.router.router import Router

__all__ = ["Router"]
