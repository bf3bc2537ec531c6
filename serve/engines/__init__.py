"""Engines: a prompt and an image in, pieces of text out. They know no task and no model family."""
