"""The gateway's own HTTP port: uvicorn with limits on slow and endless requests."""
