"""Serves HTTP on the gateway's own port: uvicorn, with limits on slow and endless requests."""
