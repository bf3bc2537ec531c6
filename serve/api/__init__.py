"""Handles HTTP apart from tasks and models: limits, authentication, bodies, errors, streams, request ids, metrics."""
