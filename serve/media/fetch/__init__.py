"""Fetch images by URL, once, from public addresses only. Engines get bytes and never fetch."""
