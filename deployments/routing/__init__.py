"""Reaches the replicas of each model from a gateway: finds them, picks one, and leaves sick ones alone."""
