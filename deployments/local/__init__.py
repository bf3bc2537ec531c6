"""Serves on one machine: starts a private Ray, shows progress, applies a changed config, stops everything."""
