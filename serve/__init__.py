"""Diptych: one picture, every model, side by side. This package is the whole program and knows nothing of Ray.

api -> router -> worker: skill.ask(request) -> engine.generate(prompt) -> pieces -> skill.parse(spoken, request)
router: events in the order they come -> task.merge(replies in catalogue order) -> api
"""
