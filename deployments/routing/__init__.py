"""Connects a gateway to the replicas of each model: finds them, picks one for a request, avoids failing ones."""
