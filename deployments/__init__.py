"""Spreads `serve` over Ray. The only package that imports Ray.

local/start -> app.build -> Gateway (server/: its HTTP port) -> routing/ (ReplicaRoute, Pool, Replicas) -> Replica
-> serve.worker
"""
