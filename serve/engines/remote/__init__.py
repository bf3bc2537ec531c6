"""Drives a model on another server through OpenAI's API: the request, the image in it, the connection, the stream."""
