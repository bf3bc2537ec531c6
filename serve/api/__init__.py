"""The HTTP API: routes, middleware, request bodies, responses, metrics and the web page."""
