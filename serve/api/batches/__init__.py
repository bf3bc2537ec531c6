"""Files and batches in OpenAI's shape: JSON lines of requests in, JSON lines of responses out, kept in one folder.

`store.py` keeps them, `runner.py` answers a batch's lines behind everybody who waits for an answer, `endpoints.py` has
the routes. Without the folder, `gateway.batches`, the routes answer 404.
"""
