"""Merge rules: several models' results as one, with how far the models agreed. No rule knows a task's request."""
