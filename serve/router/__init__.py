"""Fan-out: which models are asked, all at once, and how their replies become one. Knows neither HTTP nor an engine.

plan.py           what a request asks for, checked: Plan
router.py         Router: plan(...) -> Plan, run(plan) -> deltas and replies as they come, then the merged one
model_call.py     one model's part in a request: its times, words, span and failure
merge_streams.py  several streams as one, under one deadline
merge_replies.py  several replies as one
judge.py          a served model that writes the merged reply
route.py          the way to one model
"""

from serve.router.router import Router

__all__ = ["Router"]
