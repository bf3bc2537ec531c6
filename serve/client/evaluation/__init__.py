"""Many pictures at once: a folder through all models, and how good the models and their merged reply are.

A client like any other: it asks a running server over HTTP and knows no engine.
"""
