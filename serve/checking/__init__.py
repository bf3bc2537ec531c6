"""Checks whether a model sees: questions about drawn scenes, asked of a server or of an engine that was just loaded."""
