"""Diptych: one picture, every model, side by side. This package is the whole program and knows nothing of Ray.

A request's way, for a task (`POST /v1/tasks/vqa`):

1. api/app, api/task_calls     parse the body (api/forms) into the task's Request
2. router.plan                 choose models, judge, quorum; raise everything the client should hear, once
3. api/pictures                fetch the image or film and decode it, once
4. router.run                  call every model's Route at once; router/merge_streams is the only fan-in
5. worker                      behind each Route, here or over a connection (transport/) in another process:
                               skill.ask(request) -> engine.generate(prompt) -> pieces -> skill.parse(spoken, request)
6. router/model_call           each model's deltas, then its one Reply: timed, or its failure
7. router/merge_replies        all replies, in catalogue order, as the merged one (or router/judge)
8. api/events, api/sse         count, hold back, gather into JSON or send as server-sent events

A chat completion (api/chat_completions/) that names a task goes the same way from 2 on (task_completion.py); one that
names a model calls its Route by itself (model_completion.py), with the same model_call and merge_streams.
"""
