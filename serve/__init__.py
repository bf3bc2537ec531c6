"""Diptych: one picture, every model, side by side. This package is the whole program and imports no Ray.

The steps of a task request (`POST /v1/tasks/vqa`):

1. api/app, api/task_endpoint  parse the body (api/body) into the task's Request
2. router.plan                 choose models, judge and quorum; refuse what is wrong, once
3. api/media_loader            fetch the image or video and decode it, once
4. router.run                  call every model's Route at once; router/merge_streams joins their streams
5. worker                      behind each Route, here or over a connection (transport/) in another process:
                               skill.ask(request) -> engine.generate(prompt) -> pieces -> skill.parse(spoken, request)
6. router/model_call           each model's deltas, then its Reply with times, which may be a failure
7. router/merge_replies        merge all replies, in catalogue order (or router/judge)
8. api/events, api/responses   count events and return them as JSON or as server-sent events

A chat completion (api/chat_completions/) that names a task takes the same steps from 2 on (task_completion.py). One
that names a model calls its Route directly (model_completion.py), with the same model_call and merge_streams.
"""
